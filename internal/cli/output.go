package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"
)

// format is the value of --output: json, yaml, or empty for what people read.
type format string

func (f *format) String() string { return string(*f) }

// Type is how help names the value.
func (f *format) Type() string { return "format" }

// Set takes the words that istioctl's verbs have for the plain form too.
func (f *format) Set(s string) error {
	switch s {
	case "json", "yaml":
		*f = format(s)
	case "", "table", "text", "short":
		*f = ""
	default:
		return fmt.Errorf("%q is no format here: use json or yaml, or leave it out", s)
	}
	return nil
}

func (f *format) addTo(cmd *cobra.Command) { cmd.Flags().VarP(f, "output", "o", "json or yaml") }

// print writes v as the format says, or calls plain.
func (f format) print(w io.Writer, v any, plain func(io.Writer) error) error {
	if f == "" {
		return plain(w)
	}
	text, err := json.MarshalIndent(v, "", "  ")
	if err == nil && f == "yaml" {
		text, err = yaml.JSONToYAML(text)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", f, err)
	}
	_, err = fmt.Fprintln(w, strings.TrimSuffix(string(text), "\n"))
	return err
}

// newTable spaces columns as istioctl does.
func newTable(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 8, 5, ' ', 0) }

// printable is a text that came from a control plane without what would move the cursor, color the terminal or begin
// another line: a plane must not write the rows of another mesh.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case unicode.IsPrint(r):
			return r
		case unicode.Is(unicode.Zs, r): // protobuf's errors have spaces that do not break
			return ' '
		}
		return '?'
	}, s)
}

func orNone(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
