package apply

import "github.com/podmark/podmark/pkg/version"

// StateFormat is how this podmark writes the state folder.
func StateFormat() version.StateFormat { return version.StateFormat{Writes: format, Reads: reads} }
