package ipset_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/dataplane/ipset"
	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/test/netns"
)

func dial(t *testing.T) *ipset.Conn {
	t.Helper()
	netns.Enter(t)
	c, err := ipset.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func host(s string) netip.Prefix {
	a := netip.MustParseAddr(s)
	return netip.PrefixFrom(a, a.BitLen())
}

// members asks ipset(8), which is not our code, what a set holds.
func members(t *testing.T, name string) []string {
	t.Helper()
	out, err := exec.Command("ipset", "list", name).CombinedOutput()
	if err != nil {
		t.Fatalf("ipset list %s: %v\n%s", name, err, out)
	}
	_, list, _ := strings.Cut(string(out), "Members:\n")
	lines := strings.Split(strings.TrimSpace(list), "\n")
	slices.Sort(lines)
	return slices.DeleteFunc(lines, func(s string) bool { return s == "" })
}

func TestElements(t *testing.T) {
	m := mark.Mark{Value: 0x20000, Mask: 0xffff0000}
	tests := []struct {
		set  ipset.Set
		elem ipset.Element
		want string
	}{
		{ipset.Set{Name: "a", Type: ipset.HashIP, Family: ipset.IPv4}, ipset.Element{Prefix: host("10.1.0.2")}, "10.1.0.2"},
		{ipset.Set{Name: "b", Type: ipset.HashIP, Family: ipset.IPv6}, ipset.Element{Prefix: host("fd00::2")}, "fd00::2"},
		{ipset.Set{Name: "c", Type: ipset.HashNet, Family: ipset.IPv4}, ipset.Element{Prefix: netip.MustParsePrefix("10.1.0.0/20")}, "10.1.0.0/20"},
		{ipset.Set{Name: "d", Type: ipset.HashNet, Family: ipset.IPv6}, ipset.Element{Prefix: netip.MustParsePrefix("8000::/1")}, "8000::/1"},
		{ipset.Set{Name: "e", Type: ipset.HashNetIface, Family: ipset.IPv4}, ipset.Element{Prefix: host("10.1.0.2"), Iface: "veth1", Mark: m}, "10.1.0.2,veth1 skbmark 0x20000/0xffff0000"},
		{ipset.Set{Name: "f", Type: ipset.HashNetIface, Family: ipset.IPv6}, ipset.Element{Prefix: host("fd00::2"), Iface: "veth1", Mark: m}, "fd00::2,veth1 skbmark 0x20000/0xffff0000"},
		{ipset.Set{Name: "h", Type: ipset.HashIPPort, Family: ipset.IPv4}, ipset.Element{Prefix: host("10.1.0.2"), Protocol: 132, First: 80}, "10.1.0.2,sctp:80"},
		{ipset.Set{Name: "i", Type: ipset.HashIPPort, Family: ipset.IPv6}, ipset.Element{Prefix: host("fd00::2"), Protocol: 6, First: 65535}, "fd00::2,tcp:65535"},
		{ipset.Set{Name: "g", Type: ipset.BitmapPort}, ipset.Element{First: 30000, Last: 30001}, "30000 30001"},
	}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.set.Type, " ", tt.set.Family), func(t *testing.T) {
			c := dial(t)
			has := func() bool {
				ok, err := c.Test(tt.set, tt.elem)
				if err != nil {
					t.Fatal(err)
				}
				return ok
			}
			for range 2 { // creating and adding twice is fine
				if err := errors.Join(c.Create(tt.set), c.Add(tt.set, tt.elem)); err != nil {
					t.Fatal(err)
				}
			}
			if got := strings.Join(members(t, tt.set.Name), " "); got != tt.want {
				t.Errorf("ipset(8) sees %q, want %q", got, tt.want)
			}
			if !has() {
				t.Error("Test does not find the element")
			}
			for range 2 {
				if err := c.Del(tt.set, tt.elem); err != nil {
					t.Fatal(err)
				}
			}
			if has() {
				t.Error("Test finds the element after Del")
			}
			if err := errors.Join(c.Destroy(tt.set.Name), c.Destroy(tt.set.Name)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAddAgainChangesTheMark(t *testing.T) {
	c := dial(t)
	s := ipset.Set{Name: "ep", Type: ipset.HashNetIface, Family: ipset.IPv4}
	e := ipset.Element{Prefix: host("10.1.0.2"), Iface: "veth1", Mark: mark.Mark{Value: 0x20000, Mask: 0xffff0000}}
	again := e
	again.Mark.Value = 0x30000
	if err := errors.Join(c.Create(s), c.Add(s, e), c.Add(s, again)); err != nil {
		t.Fatal(err)
	}
	if got := members(t, "ep"); len(got) != 1 || !strings.Contains(got[0], "0x30000") {
		t.Errorf("members %v, want one with mark 0x30000", got)
	}
}

func TestHeader(t *testing.T) {
	c := dial(t)
	s := ipset.Set{Name: "peers", Type: ipset.HashIP, Family: ipset.IPv4}
	if err := errors.Join(c.Create(s), c.Add(s, ipset.Element{Prefix: host("10.0.0.1")}), c.Add(s, ipset.Element{Prefix: host("10.0.0.2")})); err != nil {
		t.Fatal(err)
	}
	run(t, "iptables-nft", "-t", "mangle", "-A", "INPUT", "-m", "set", "--match-set", "peers", "src")
	h, err := c.Header("peers")
	if err != nil || h.References != 1 || h.Elements != 2 {
		t.Errorf("Header = %+v, %v; want 1 reference, 2 elements", h, err)
	}
	names, err := c.Names()
	if err != nil || fmt.Sprint(names) != "[peers]" {
		t.Errorf("Names = %v, %v", names, err)
	}
	if err := c.Destroy("peers"); err == nil {
		t.Error("destroying a set in use succeeded")
	}
}

func TestMissingSet(t *testing.T) {
	c := dial(t)
	s := ipset.Set{Name: "nothing", Type: ipset.HashIP, Family: ipset.IPv4}
	e := ipset.Element{Prefix: host("10.0.0.1")}
	_, testErr := c.Test(s, e)
	_, headerErr := c.Header(s.Name)
	for what, err := range map[string]error{"Add": c.Add(s, e), "Del": c.Del(s, e), "Test": testErr, "Header": headerErr} {
		if !errors.Is(err, ipset.ErrNotExist) {
			t.Errorf("%s on a missing set: %v, want ErrNotExist", what, err)
		}
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
