package nodeports

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"sigs.k8s.io/yaml"

	"github.com/podmark/podmark/pkg/agent"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/mark"
)

// Config is what podmarkd's configuration file says about NodePorts.
type Config struct {
	// Ranges are nil where the file does not say.
	Ranges []desired.PortRange
	// Mode is empty where the file does not say.
	Mode agent.PortMode
}

// ParseConfig reads a configuration file, YAML or JSON: nodePortRanges, a list of
// numbers and ranges, and nodePortMode. Another key is an error: it may be one of these, misspelt.
func ParseConfig(data []byte) (Config, error) {
	// Numbers are read as text: a float would turn 30000.5 into a port.
	var in struct {
		Ranges []json.RawMessage `json:"nodePortRanges"`
		Mode   agent.PortMode    `json:"nodePortMode"`
	}
	if err := yaml.UnmarshalStrict(data, &in); err != nil {
		return Config{}, fmt.Errorf("reading YAML: %w", err)
	}
	c := Config{Mode: in.Mode}
	if c.Mode != "" && c.Mode != agent.PortsExact && c.Mode != agent.PortsRange {
		return Config{}, fmt.Errorf("reading nodePortMode %q: want %s or %s", c.Mode, agent.PortsExact, agent.PortsRange)
	}
	if in.Ranges == nil {
		return c, nil
	}
	items := make([]any, len(in.Ranges))
	for i, raw := range in.Ranges {
		items[i] = json.Number(raw)
		if text := ""; json.Unmarshal(raw, &text) == nil {
			items[i] = text
		}
	}
	var err error
	c.Ranges, err = parseRanges("nodePortRanges", items)
	if err != nil {
		return Config{}, err
	}
	return c, nil
}

// FelixConfiguration is what Calico's FelixConfigurations say for a node.
type FelixConfiguration struct {
	// Ranges are nil where they do not say, and Name is the object that says them.
	Ranges []desired.PortRange
	Name   string
	// Mask is that of the rules which Felix writes; nil where they do not say.
	Mask *uint32
}

// felixKeys are the keys of a spec that matter here.
var felixKeys = []string{"kubeNodePortRanges", "iptablesMarkMask", "nftablesMarkMask", "nftablesMode"}

// ParseFelix reads the FelixConfigurations of a node, as Felix does: a key of a later one takes
// the place of that of an earlier one, and nil stands for one that is not there. The mask is
// nftablesMarkMask where nftablesMode is Enabled, and else iptablesMarkMask: in mode Auto, where
// Felix looks at its node, the object does not tell. Of two keys, the one that is right is
// returned with an error of the other.
func ParseFelix(objects ...*unstructured.Unstructured) (FelixConfiguration, error) {
	spec, by := map[string]any{}, map[string]string{}
	for _, u := range objects {
		if u == nil {
			continue
		}
		for _, key := range felixKeys {
			if value, found, err := unstructured.NestedFieldNoCopy(u.Object, "spec", key); err == nil && found && value != nil {
				spec[key], by[key] = value, u.GetName()
			}
		}
	}
	var f FelixConfiguration
	var rangesErr, maskErr error
	switch ranges := spec["kubeNodePortRanges"].(type) {
	case nil:
	case []any:
		// Calico does not say what an empty list means; it does not name a range.
		if len(ranges) > 0 {
			if f.Ranges, rangesErr = parseRanges("kubeNodePortRanges", ranges); rangesErr == nil {
				f.Name = by["kubeNodePortRanges"]
			}
		}
	default:
		rangesErr = fmt.Errorf("reading kubeNodePortRanges %v: want a list", ranges)
	}
	key := "iptablesMarkMask"
	if mode, _ := spec["nftablesMode"].(string); strings.EqualFold(mode, "Enabled") {
		key = "nftablesMarkMask"
	}
	if value, found := spec[key]; found {
		mask, parseErr := mark.ParseMask(numberText(value))
		if parseErr != nil {
			maskErr = fmt.Errorf("reading %s: %w", key, parseErr)
		} else {
			f.Mask = &mask
		}
	}
	return f, errors.Join(rangesErr, maskErr)
}

// parseRanges reads numbers and texts like "a:b" and "a-b".
func parseRanges(key string, items []any) ([]desired.PortRange, error) {
	out := make([]desired.PortRange, 0, len(items))
	for i, item := range items {
		r, err := config.ParsePortRange(numberText(item))
		if err != nil {
			return nil, fmt.Errorf("reading %s[%d]: %w", key, i, err)
		}
		out = append(out, r)
	}
	return out, nil
}

// numberText renders a number of a JSON document as it was written there.
func numberText(v any) string {
	if f, ok := v.(float64); ok {
		return strconv.FormatFloat(f, 'f', -1, 64)
	}
	return fmt.Sprint(v)
}

// APIServer is what the arguments of a kube-apiserver say.
type APIServer struct {
	Range desired.PortRange
	// ByDefault is set where they do not name a range, so it is kube-apiserver's own.
	ByDefault bool
}

// rangeFlag is where kube-apiserver gets its range from. It takes "_" for "-".
const rangeFlag = "--service-node-port-range"

// ParseArguments reads a command with its arguments. It returns nil where they neither
// name a range nor start a kube-apiserver.
func ParseArguments(command []string) (*APIServer, error) {
	value, named, starts := rangeArgument(words(command))
	// kube-apiserver takes an empty range for its default.
	if value == "" {
		if named || starts {
			return &APIServer{Range: config.DefaultNodePorts, ByDefault: true}, nil
		}
		return nil, nil
	}
	r, err := utilnet.ParsePortRange(value)
	if err != nil {
		return nil, fmt.Errorf("reading %s %q: %w", rangeFlag, value, err)
	}
	first, last := max(r.Base, 1), r.Base+r.Size-1
	if last < first || last > 65535 {
		return nil, fmt.Errorf("reading %s %q: want ports from 1 to 65535", rangeFlag, value)
	}
	return &APIServer{Range: desired.PortRange{First: uint16(first), Last: uint16(last)}}, nil
}

// rangeArgument finds the range in a command, if it is named there, and whether the command starts
// a kube-apiserver: that does not start without --etcd-servers, so a command that only mentions it
// is told apart by that.
func rangeArgument(command []string) (value string, named, starts bool) {
	server, etcd := false, false
	for i, word := range command {
		name, rest, assigned := strings.Cut(word, "=")
		switch name = strings.ReplaceAll(name, "_", "-"); {
		case name == rangeFlag && assigned: // the last one counts
			value, named = rest, true
		case name == rangeFlag && i+1 < len(command):
			value, named = command[i+1], true
		case name == "--etcd-servers":
			etcd = true
		case !strings.HasPrefix(word, "-") && path.Base(word) == "kube-apiserver":
			server = true
		}
	}
	return strings.Trim(value, `"'`), named, server && etcd
}

// words takes apart what is handed to a shell as one argument. Quotes are left on.
func words(command []string) []string {
	var out []string
	for _, argument := range command {
		for _, word := range strings.Fields(argument) {
			out = append(out, strings.TrimLeft(word, `"'`))
		}
	}
	return out
}

// ParsePod reads the arguments of a pod's containers; nil where none is a
// kube-apiserver, or the pod has ended.
func ParsePod(pod *corev1.Pod) (*APIServer, error) {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return nil, nil
	}
	for _, c := range pod.Spec.Containers {
		server, err := ParseArguments(append(append([]string(nil), c.Command...), c.Args...))
		if err != nil {
			return nil, fmt.Errorf("container %q: %w", c.Name, err)
		}
		if server != nil {
			return server, nil
		}
	}
	return nil, nil
}

// ParseManifest reads a static pod, YAML or JSON, as the kubelet does: one pod a file.
// It returns nil for what is not the pod of a kube-apiserver.
func ParseManifest(data []byte) (*APIServer, error) {
	// Most manifests are of something else, and reading YAML takes time and memory.
	if !bytes.Contains(data, []byte("apiserver")) {
		return nil, nil
	}
	var pod corev1.Pod
	if err := yaml.Unmarshal(data, &pod); err != nil {
		return nil, fmt.Errorf("reading YAML: %w", err)
	}
	if pod.Kind != "Pod" {
		return nil, nil
	}
	return ParsePod(&pod)
}
