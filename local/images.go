// Package local holds what the local cluster is made of: the table of its images and their pins.
package local

import _ "embed"

// Images is images.yaml.
//
//go:embed images.yaml
var Images []byte
