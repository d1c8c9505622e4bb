package config

import "github.com/containernetworking/cni/pkg/version"

// Versions are the versions of CNI that podmark speaks: from the first that chains
// plugins with a prevResult, to the one that has GC and STATUS.
var Versions = version.VersionsStartingFrom("0.3.0")
