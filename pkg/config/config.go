// Package config reads podmark's entry of a CNI network configuration.
//
// It owns the keys, their defaults and what is accepted. It is pure: it opens
// no file and asks the kernel nothing. Keys it does not know are ignored, as
// the CNI specification asks, and [Unknown] lists them; a known key with a wrong value is an [Error] that
// names the key, the value and what is accepted.
package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/podmark/podmark/pkg/mark"
)

// Defaults of the keys that have one.
const (
	DefaultMask        = 0xffff0000
	DefaultStateDir    = "/run/podmark"
	SocketName         = "podmarkd.sock" // of podmarkd, in the state directory
	DefaultLockTimeout = 10 * time.Second
	maxLockTimeout     = 10 * time.Minute // beyond what any runtime waits for a plugin
)

// Policy says where an endpoint's NetworkPolicy comes from.
type Policy string

// The values of the key "policy".
const (
	PolicyNone  Policy = "none"  // the endpoint is marked and not policed
	PolicyFiles Policy = "files" // the node's compiled policy; see podmarkctl apply
	// PolicyKubernetes is that of the Kubernetes API: podmarkd is asked for it.
	PolicyKubernetes Policy = "kubernetes"
)

// MarkCollision says what becomes of the first endpoint of a node on which bits of the
// mask belong to another program.
type MarkCollision string

// The values of the key "markCollision".
const (
	CollisionRefuse MarkCollision = "refuse" // where it would be judged wrongly
	CollisionWarn   MarkCollision = "warn"
)

// MaskAuto is the value of "iptablesMarkMask" by which the node chooses.
const MaskAuto = "auto"

// Config is a validated network configuration.
type Config struct {
	CNIVersion string
	Network    string
	// Layout is zero where the node chooses one, and keeps it.
	Layout        mark.Layout
	MarkCollision MarkCollision
	NodePorts     []PortRange
	Backend       Backend
	Policy        Policy
	// FailOpen lets a pod start without its policy when podmarkd cannot be asked. Only
	// PolicyKubernetes has it.
	FailOpen bool
	// AllowTunnels lets endpoints send what the node's tunnels unwrap.
	AllowTunnels bool
	StateDir     string
	// DaemonSocket is where podmarkd answers.
	DaemonSocket string
	// LockTimeout bounds the wait for other podmark processes and for xtables.
	LockTimeout time.Duration
	// LogFile is empty for no log.
	LogFile string
	// Sources are the prefixes from which endpoints may send besides their own addresses:
	// all of them, or with PolicyKubernetes those that the annotation of their pod names.
	// They are sorted, and none is inside another.
	Sources []netip.Prefix
	// Labels of the endpoint, from args.cni.labels.
	Labels map[string]string
	// Attachments is the runtime's list of live attachments. It is set by GC only.
	Attachments Attachments
	// PrevResult is what the plugins before returned, as JSON; nil without any.
	PrevResult json.RawMessage
}

// Attachments is what a GC says about the attachments that are still valid.
type Attachments struct {
	// Given is false when the key is absent: "everything may go" and "the caller
	// does not know" look the same then, so nothing may be collected.
	Given bool
	List  []Attachment
}

// Attachment is one entry of cni.dev/valid-attachments.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// Error is a wrong value of a known key.
type Error struct {
	Key   string
	Value string
	Want  string
	Cause error
}

func (e *Error) Error() string {
	msg := fmt.Sprintf("configuration key %q has value %s: want %s", e.Key, e.Value, e.Want)
	if e.Cause != nil {
		msg += ": " + e.Cause.Error()
	}
	return msg
}

func (e *Error) Unwrap() error { return e.Cause }

// ErrSyntax is returned for input that is not a JSON object.
var ErrSyntax = errors.New("network configuration is not a JSON object")

// raw mirrors the input; a nil message is an absent key. Those of CNI are in the entry of any
// plugin.
type raw struct {
	CNIVersion         json.RawMessage `json:"cniVersion" of:"CNI"`
	Name               json.RawMessage `json:"name" of:"CNI"`
	IPTablesMarkMask   json.RawMessage `json:"iptablesMarkMask"`
	MarkCollision      json.RawMessage `json:"markCollision"`
	KubeNodePortRanges json.RawMessage `json:"kubeNodePortRanges"`
	Backend            json.RawMessage `json:"backend"`
	Policy             json.RawMessage `json:"policy"`
	FailOpen           json.RawMessage `json:"failOpen"`
	AllowTunnels       json.RawMessage `json:"allowTunnels"`
	StateDir           json.RawMessage `json:"stateDir"`
	DaemonSocket       json.RawMessage `json:"daemonSocket"`
	LockTimeoutSeconds json.RawMessage `json:"lockTimeoutSeconds"`
	LogFile            json.RawMessage `json:"logFile"`
	Sources            json.RawMessage `json:"allowedSourcePrefixes"`
	Args               json.RawMessage `json:"args" of:"CNI"`
	// libcni sends the list under both names (containernetworking/cni#1101).
	ValidAttachments  json.RawMessage `json:"cni.dev/valid-attachments" of:"CNI"`
	LegacyAttachments json.RawMessage `json:"cni.dev/attachments" of:"CNI"`
	PrevResult        json.RawMessage `json:"prevResult" of:"CNI"`
}

// Keys are podmark's own, sorted.
func Keys() []string { return slices.Sorted(slices.Values(keys(true))) }

// keys are those of raw: podmark's own, or those that it reads of others.
func keys(own bool) (out []string) {
	for _, f := range reflect.VisibleFields(reflect.TypeFor[raw]()) {
		if (f.Tag.Get("of") == "") == own {
			out = append(out, f.Tag.Get("json"))
		}
	}
	return out
}

// ofOthers are keys that runtimes, Multus and the CNI specification put into the entry of any
// plugin.
var ofOthers = []string{"type", "capabilities", "runtimeConfig", "ipam", "dns", "ipMasq", "deviceID", "pciBusID"}

// Unknown lists the keys of an entry, or of all that the plugin is called with, that mean
// nothing: sorted, nil for none. Those with a slash or a dot in them belong to whoever has that
// domain, and those that begin with an underscore are comments.
func Unknown(entry []byte) []string {
	var in map[string]json.RawMessage
	if json.Unmarshal(entry, &in) != nil {
		return nil // Parse says what is wrong
	}
	known := slices.Concat(keys(true), keys(false), ofOthers)
	var out []string
	for key := range in {
		is := func(name string) bool { return strings.EqualFold(name, key) } // so does encoding/json
		if !slices.ContainsFunc(known, is) && !strings.ContainsAny(key, "/.") && !strings.HasPrefix(key, "_") {
			out = append(out, key)
		}
	}
	slices.Sort(out)
	return out
}

// Parse reads and validates a network configuration. Every wrong value is
// reported, each as an [*Error], joined.
func Parse(stdin []byte) (Config, error) {
	var in raw
	if err := json.Unmarshal(stdin, &in); err != nil {
		return Config{}, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	c := Config{}
	err := errors.Join(
		read(&c.CNIVersion, "cniVersion", in.CNIVersion, "", cniVersion),
		read(&c.Network, "name", in.Name, nil, networkName),
		read(&c.Layout, "iptablesMarkMask", in.IPTablesMarkMask, fmt.Sprintf("%#x", uint32(DefaultMask)), maskLayout),
		read(&c.MarkCollision, "markCollision", in.MarkCollision, string(CollisionRefuse),
			oneOf(CollisionRefuse, CollisionWarn)),
		read(&c.NodePorts, "kubeNodePortRanges", in.KubeNodePortRanges, []any{DefaultNodePorts.String()}, portRanges),
		read(&c.Backend, "backend", in.Backend, string(BackendAuto), oneOf(Backends...)),
		read(&c.Policy, "policy", in.Policy, string(PolicyNone), oneOf(PolicyNone, PolicyFiles, PolicyKubernetes)),
		read(&c.FailOpen, "failOpen", in.FailOpen, false, boolean),
		read(&c.AllowTunnels, "allowTunnels", in.AllowTunnels, false, boolean),
		read(&c.StateDir, "stateDir", in.StateDir, DefaultStateDir, absolutePath),
		read(&c.DaemonSocket, "daemonSocket", in.DaemonSocket, "", optionalPath),
		read(&c.LockTimeout, "lockTimeoutSeconds", in.LockTimeoutSeconds, DefaultLockTimeout.Seconds(), seconds),
		read(&c.LogFile, "logFile", in.LogFile, "", optionalPath),
		read(&c.Sources, "allowedSourcePrefixes", in.Sources, []any{}, prefixes),
		read(&c.Labels, "args.cni.labels", labelsOf(in.Args), []any{}, labels),
	)
	if err != nil {
		return Config{}, err
	}
	if c.FailOpen && c.Policy != PolicyKubernetes {
		return Config{}, &Error{
			Key: "failOpen", Value: "true",
			Want: fmt.Sprintf("false: it is for \"policy\": %q", PolicyKubernetes),
		}
	}
	if c.DaemonSocket == "" {
		c.DaemonSocket = filepath.Join(c.StateDir, SocketName)
	}
	if string(in.PrevResult) != "null" {
		c.PrevResult = in.PrevResult
	}
	c.Attachments, err = attachments(in.ValidAttachments, in.LegacyAttachments)
	if err != nil {
		return Config{}, err
	}
	return c, nil
}

// read decodes one key into dst. An absent key takes the default, which goes
// through the same parser as a given value.
func read[T any](dst *T, key string, msg json.RawMessage, byDefault any, parse func(any) (T, string, error)) error {
	value := byDefault
	if msg != nil {
		d := json.NewDecoder(strings.NewReader(string(msg)))
		d.UseNumber()
		if err := d.Decode(&value); err != nil {
			return &Error{Key: key, Value: string(msg), Want: "valid JSON", Cause: err}
		}
	}
	parsed, want, err := parse(value)
	if want != "" {
		shown, _ := json.Marshal(value)
		return &Error{Key: key, Value: string(shown), Want: want, Cause: err}
	}
	*dst = parsed
	return nil
}

// A parser returns what it wanted, empty when it got it, and optionally why
// what it got will not do.

// digits reports whether s is a decimal number of at most n digits.
func digits(s string, n int) bool {
	return s != "" && len(s) <= n && strings.Trim(s, "0123456789") == ""
}

// These are no regular expressions because every call of the plugin would
// compile them: 0.2 ms, a tenth of an ADD.

// isVersion accepts three numbers with dots between.
func isVersion(s string) bool {
	parts := strings.Split(s, ".")
	return len(parts) == 3 && !slices.ContainsFunc(parts, func(part string) bool { return !digits(part, 9) })
}

// isNetworkName accepts what the CNI specification allows in a network name; it
// cannot leave a directory.
func isNetworkName(s string) bool {
	if s == "" || len(s) > 255 || strings.ContainsRune("_.-", rune(s[0])) {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_.-", r))
	})
}

// cutRange splits "a:b" or "a-b"; a number alone is a range of one.
func cutRange(s string) (first, last string, ok bool) {
	first, last = s, s
	if i := strings.IndexAny(s, ":-"); i >= 0 {
		first, last = s[:i], s[i+1:]
	}
	return first, last, digits(first, 5) && digits(last, 5)
}

func cniVersion(v any) (version, want string, err error) {
	s, ok := v.(string)
	if !ok || s != "" && !isVersion(s) {
		return "", `a version such as "1.0.0"`, nil
	}
	return s, "", nil
}

func networkName(v any) (name, want string, err error) {
	s, ok := v.(string)
	if !ok || !isNetworkName(s) {
		return "", "a network name of letters, digits, '_', '.' and '-'", nil
	}
	return s, "", nil
}

func maskLayout(v any) (mark.Layout, string, error) {
	const want = "a 32-bit mask of at least two bits outside kube-proxy's 0xc000, as a number or a string such as \"0xffff0000\", or \"auto\""
	if v == MaskAuto {
		return mark.Layout{}, "", nil
	}
	var text string
	switch v := v.(type) {
	case string:
		text = v
	case json.Number:
		text = v.String()
	default:
		return mark.Layout{}, want, nil
	}
	mask, err := mark.ParseMask(text)
	if err != nil {
		return mark.Layout{}, want, err
	}
	layout, err := mark.NewLayout(mask)
	if err != nil {
		return mark.Layout{}, want, err
	}
	return layout, "", nil
}

func portRanges(v any) ([]PortRange, string, error) {
	const want = `a list of ports and ranges from 1 to 65535, each a number, "a:b" or "a-b" with a <= b`
	list, ok := v.([]any)
	if !ok {
		return nil, want, nil
	}
	ranges := make([]PortRange, 0, len(list))
	for _, item := range list {
		r, err := ParsePortRange(fmt.Sprint(item))
		if err != nil {
			return nil, want, err
		}
		ranges = append(ranges, r)
	}
	return ranges, "", nil
}

// ParsePortRange reads a port or a range of ports: 80, 80-90 or 80:90.
func ParsePortRange(text string) (PortRange, error) {
	first, last, ok := cutRange(text)
	if !ok {
		return PortRange{}, fmt.Errorf("%v is neither a port nor a range", text)
	}
	a, errA := strconv.ParseUint(first, 10, 16)
	b, errB := strconv.ParseUint(last, 10, 16)
	if errA != nil || errB != nil || a == 0 || a > b {
		return PortRange{}, fmt.Errorf("%q is out of bounds or reversed", text)
	}
	return PortRange{First: uint16(a), Last: uint16(b)}, nil
}

func oneOf[T ~string](accepted ...T) func(any) (T, string, error) {
	return func(v any) (T, string, error) {
		names := make([]string, len(accepted))
		for i, a := range accepted {
			if s, ok := v.(string); ok && T(s) == a {
				return a, "", nil
			}
			names[i] = strconv.Quote(string(a))
		}
		return "", "one of " + strings.Join(names, ", "), nil
	}
}

func boolean(v any) (value bool, want string, err error) {
	if value, ok := v.(bool); ok {
		return value, "", nil
	}
	return false, "true or false", nil
}

func absolutePath(v any) (path, want string, err error) {
	const accepted = "an absolute path without '..', other than /"
	s, ok := v.(string)
	if !ok || !filepath.IsAbs(s) || strings.ContainsRune(s, 0) || len(s) > 4000 {
		return "", accepted, nil
	}
	for part := range strings.SplitSeq(s, "/") {
		if part == ".." {
			return "", accepted, nil
		}
	}
	if s = filepath.Clean(s); s == "/" {
		return "", accepted, nil
	}
	return s, "", nil
}

func optionalPath(v any) (path, want string, err error) {
	if v == "" {
		return "", "", nil
	}
	return absolutePath(v)
}

func seconds(v any) (time.Duration, string, error) {
	want := fmt.Sprintf("a number of seconds above 0, at most %g", maxLockTimeout.Seconds())
	var f float64
	switch v := v.(type) {
	case float64:
		f = v
	case json.Number:
		var err error
		if f, err = v.Float64(); err != nil {
			return 0, want, err
		}
	default:
		return 0, want, nil
	}
	// Compared as a number first: a huge value would overflow the Duration.
	if !(f > 0 && f <= maxLockTimeout.Seconds()) {
		return 0, want, nil
	}
	return max(time.Duration(f*float64(time.Second)), time.Millisecond), "", nil
}

// labelsOf digs args.cni.labels out; anything else below args is not podmark's.
func labelsOf(args json.RawMessage) json.RawMessage {
	var in struct {
		CNI struct {
			Labels json.RawMessage `json:"labels"`
		} `json:"cni"`
	}
	if args == nil || json.Unmarshal(args, &in) != nil {
		return nil
	}
	return in.CNI.Labels
}

// labels accepts the list of pairs of CNI's CONVENTIONS.md, and a plain object.
func labels(v any) (map[string]string, string, error) {
	const want = `a list such as [{"key": "app", "value": "web"}] or an object of strings`
	out := map[string]string{}
	add := func(key, value any) bool {
		k, okKey := key.(string)
		s, okValue := value.(string)
		out[k] = s
		return okKey && okValue && k != ""
	}
	switch v := v.(type) {
	case nil:
		return nil, "", nil
	case map[string]any:
		for key, value := range v {
			if !add(key, value) {
				return nil, want, nil
			}
		}
	case []any:
		for _, item := range v {
			pair, ok := item.(map[string]any)
			if !ok || !add(pair["key"], pair["value"]) {
				return nil, want, nil
			}
		}
	default:
		return nil, want, nil
	}
	return out, "", nil
}

// attachments tells the three shapes of a GC apart: key absent, null, list.
func attachments(valid, legacy json.RawMessage) (Attachments, error) {
	const key = "cni.dev/valid-attachments"
	msg := valid
	if msg == nil {
		msg = legacy
	}
	if msg == nil {
		return Attachments{}, nil
	}
	var list []Attachment
	if err := json.Unmarshal(msg, &list); err != nil {
		return Attachments{}, &Error{Key: key, Value: string(msg), Want: "a list of {containerID, ifname}", Cause: err}
	}
	return Attachments{Given: true, List: list}, nil
}
