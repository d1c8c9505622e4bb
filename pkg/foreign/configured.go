package foreign

import (
	"encoding/json"
	"slices"
)

// Configured are the bits that the plugins of a network configuration will use: those of
// well-known programs, and the one that portmap is told. Plugins are wherever something has a
// "type", as in the delegates of a plugin that calls others. What is no JSON names none.
func Configured(configuration []byte) uint32 {
	var v any
	if json.Unmarshal(configuration, &v) != nil {
		return 0
	}
	return configured(v)
}

func configured(v any) (bits uint32) {
	switch v := v.(type) {
	case []any:
		for _, item := range v {
			bits |= configured(item)
		}
	case map[string]any:
		for _, item := range v {
			bits |= configured(item)
		}
		plugin, _ := v["type"].(string)
		for _, u := range Users() {
			if slices.Contains(u.Plugins, plugin) {
				bits |= u.Bits
			}
		}
		if bit, ok := v["markMasqBit"].(float64); ok && bit >= 0 && bit < 32 {
			bits |= 1 << uint(bit)
		}
	}
	return bits
}

// NotLookedAt lists the ways to write a mark that [Read] does not look at. What they write
// into the packet mark before INPUT or after OUTPUT matters no more than what a rule does there.
func NotLookedAt() []string {
	return []string{
		"eBPF programs",
		"actions of tc (skbedit, connmark, ctinfo, ct)",
		"flows of Open vSwitch",
		"ebtables-legacy",
		"marks of sockets (SO_MARK), of WireGuard and of IPsec (output-mark)",
		"programs that listen to NFQUEUE or change conntrack themselves (conntrack -U)",
	}
}
