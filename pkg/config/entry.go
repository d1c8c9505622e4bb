package config

import (
	"encoding/json"
	"fmt"
)

// ParseEntry reads podmark's entry of a list, with the name and the version of that
// list: what the plugin is sent, and what it would say.
func ParseEntry(entry []byte, network, version string) (Config, error) {
	keys := map[string]json.RawMessage{}
	if err := json.Unmarshal(entry, &keys); err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	for key, value := range map[string]string{"name": network, "cniVersion": version} {
		keys[key], _ = json.Marshal(value) // a string always is
	}
	whole, err := json.Marshal(keys)
	if err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	return Parse(whole)
}

// SaysPolicy reports whether an entry says where its policies come from: one that does not is
// not policed.
func SaysPolicy(entry []byte) bool {
	var in raw
	return json.Unmarshal(entry, &in) == nil && in.Policy != nil
}
