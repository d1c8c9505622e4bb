package config

// Backend is what enforces policy, as an operator asks for it.
type Backend string

// The values of the key "backend".
const (
	BackendAuto     Backend = "auto" // nftables where the kernel can, else iptables
	BackendNFTables Backend = "nftables"
	BackendIPTables Backend = "iptables"
)

// Backends are the values of "backend".
var Backends = []Backend{BackendAuto, BackendNFTables, BackendIPTables}

// Kind is what enforces policy on a node. Of iptables it tells the variants apart: each has its
// own rules in the kernel.
type Kind string

// The kinds.
const (
	NFTables       Kind = "nftables"
	IPTablesNFT    Kind = "iptables-nft"
	IPTablesLegacy Kind = "iptables-legacy"
)

// Backend is the one of which the kind is.
func (k Kind) Backend() Backend {
	if k == NFTables {
		return BackendNFTables
	}
	return BackendIPTables
}
