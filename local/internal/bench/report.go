package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Figures are what a column has of a plane.
type Figures struct {
	Title                    string
	Connect                  time.Duration // from the first client's dialling until all hold their first whole state
	Refused                  int64         // streams that were tried again meanwhile
	Endpoints, Routes        float64       // how many names of either a client holds: that nothing is left out
	Flips, Burst             Spread
	ConnectCost              Cost // for each client
	FlipCost, BurstCost      Cost // for each change and client
	Before, Connected, After Memory
	Clients                  int
}

// Cost is what something takes.
type Cost struct {
	CPU, Load time.Duration // of the plane; of what makes the load
	Bytes     float64       // of TCP, from the plane to its clients
}

// Spread is how long changes take, from the start of the write to the API server until a client has it.
type Spread struct {
	P50, P90, P99 time.Duration // of all changes and clients
	Last          time.Duration // median over changes of when the last client has it
}

// spreadOf wants marks that are done.
func spreadOf(began []time.Time, marks []*mark) Spread {
	var all, last []time.Duration
	for i, m := range marks {
		latest := time.Duration(0)
		for _, at := range m.at {
			took := at.Sub(began[i])
			all = append(all, took)
			latest = max(latest, took)
		}
		last = append(last, latest)
	}
	slices.Sort(all)
	slices.Sort(last)
	return Spread{quantile(all, 50), quantile(all, 90), quantile(all, 99), quantile(last, 50)}
}

// quantile returns the least value that percent of the sorted ones do not exceed.
func quantile(sorted []time.Duration, percent int) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[max((len(sorted)*percent+99)/100, 1)-1]
}

// perClient is what resident memory has grown by for each client that was there.
func (f Figures) perClient() float64 {
	return (f.After.Resident - f.Before.Resident) / float64(f.Clients)
}

// rows are what a report shows; goal is what part of istiod's figure Heddle's is to be at most, 0 if nothing is said.
var rows = []struct {
	title  string
	digits int
	of     func(Figures) float64
	goal   float64
}{
	{"all clients connected, s", 1, func(f Figures) float64 { return f.Connect.Seconds() }, 0},
	{"streams refused meanwhile, and tried again", 0, func(f Figures) float64 { return float64(f.Refused) }, 0},
	{"first state, of a client: clusters with endpoints", 0, func(f Figures) float64 { return f.Endpoints }, 0},
	{"first state, of a client: route configurations", 0, func(f Figures) float64 { return f.Routes }, 0},
	{"first state, of a client: CPU, ms", 2, func(f Figures) float64 { return millis(f.ConnectCost.CPU) }, 0},
	{"first state, of a client: bytes, kB", 0, func(f Figures) float64 { return f.ConnectCost.Bytes / 1e3 }, 0},
	{"flip, p50, ms", 1, func(f Figures) float64 { return millis(f.Flips.P50) }, 0},
	{"flip, p90, ms", 1, func(f Figures) float64 { return millis(f.Flips.P90) }, 0},
	{"flip, p99, ms", 1, func(f Figures) float64 { return millis(f.Flips.P99) }, 1. / 3},
	{"flip, last client (median), ms", 1, func(f Figures) float64 { return millis(f.Flips.Last) }, 0},
	{"flip, of a client: CPU, µs", 1, func(f Figures) float64 { return micros(f.FlipCost.CPU) }, 1. / 4},
	{"flip, of a client: bytes, B", 0, func(f Figures) float64 { return f.FlipCost.Bytes }, 0},
	{"flip, of a client: CPU of the load itself, µs", 1, func(f Figures) float64 { return micros(f.FlipCost.Load) }, 0},
	{"burst, p50, ms", 1, func(f Figures) float64 { return millis(f.Burst.P50) }, 0},
	{"burst, p99, ms", 1, func(f Figures) float64 { return millis(f.Burst.P99) }, 0},
	{"burst, of a change and client: CPU, µs", 1, func(f Figures) float64 { return micros(f.BurstCost.CPU) }, 0},
	{"burst, of a change and client: bytes, B", 0, func(f Figures) float64 { return f.BurstCost.Bytes }, 0},
	{"resident, without clients, MB", 0, func(f Figures) float64 { return f.Before.Resident / 1e6 }, 0},
	{"resident, all connected, MB", 0, func(f Figures) float64 { return f.Connected.Resident / 1e6 }, 0},
	{"resident, after all changes, MB", 0, func(f Figures) float64 { return f.After.Resident / 1e6 }, 0},
	{"resident, most at any time, MB", 0, func(f Figures) float64 { return f.After.Peak / 1e6 }, 0},
	{"resident, of a client, kB", 0, func(f Figures) float64 { return f.perClient() / 1e3 }, 1. / 6},
	{"heap in use, without clients, MB", 0, func(f Figures) float64 { return f.Before.Heap / 1e6 }, 0},
	{"heap in use, after all changes, MB", 0, func(f Figures) float64 { return f.After.Heap / 1e6 }, 0},
}

func millis(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// Report is what Run has measured, in the order of columns.
type Report struct {
	Sizes
	Columns []Figures
}

// part is the worse of Heddle's two figures, as a part of its peer's. It returns false if the peer has nothing, or less.
func (r Report) part(of func(Figures) float64) (float64, bool) {
	peer := of(r.Columns[1])
	return max(of(r.Columns[0]), of(r.Columns[len(r.Columns)-1])) / peer, peer > 0
}

// Write writes the report as Markdown, about being what the reader should know of machine and source, and returns the goals
// that are missed.
func (r Report) Write(w io.Writer, about string) (missed []string, err error) {
	fmt.Fprintf(w, `# Beside istiod

Written by `+"`make bench-istiod`"+`, which builds the peer from `+"`peers/`"+` and measures both planes in pods of one local cluster, one after
the other, under the same clients. %s

There are %d services of one port and two endpoints in %d namespaces, and %d clients, which see all of them. A client is a pod with a
token bound to it; it speaks delta discovery over TLS and asks as Envoy does. A flip replaces an address in an EndpointSlice, and lasts
from the start of the write to the API server until a client has read it: %d come one by one, each %v after all clients have the one
before; then %d at once, of as many services. CPU is the time that the plane's process takes, bytes are those of TCP. "Part" is the worse
of Heddle's two columns, as a part of istiod's with its defaults.

`, about, r.Services, r.Namespaces, r.Clients, r.Flips, r.Gap, r.Burst)

	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	fmt.Fprint(t, "|\t|")
	for _, c := range r.Columns {
		fmt.Fprintf(t, " %s\t|", c.Title)
	}
	fmt.Fprintf(t, " part\t| goal\t|\n|---\t|%s\n", strings.Repeat("---:\t|", len(r.Columns)+2))
	for _, row := range rows {
		fmt.Fprintf(t, "| %s\t|", row.title)
		for _, c := range r.Columns {
			fmt.Fprintf(t, " %.*f\t|", row.digits, row.of(c))
		}
		part, ok := r.part(row.of)
		switch {
		case !ok:
			fmt.Fprint(t, "\t|\t|\n")
		case row.goal == 0:
			fmt.Fprintf(t, " %.2f\t|\t|\n", part)
		case part <= row.goal:
			fmt.Fprintf(t, " %.2f\t| %.2f, met\t|\n", part, row.goal)
		default:
			fmt.Fprintf(t, " %.2f\t| %.2f, **missed**\t|\n", part, row.goal)
			missed = append(missed, fmt.Sprintf("%s: %.2f of istiod's, the goal is %.2f", row.title, part, row.goal))
		}
	}
	return missed, t.Flush()
}
