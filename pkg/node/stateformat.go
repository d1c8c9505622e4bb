package node

import "github.com/podmark/podmark/pkg/version"

// StateFormat is how this podmark writes the state directory.
func StateFormat() version.StateFormat { return version.StateFormat{Writes: format, Reads: reads} }
