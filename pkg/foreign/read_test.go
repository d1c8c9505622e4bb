package foreign_test

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/podmark/podmark/pkg/foreign"
	"github.com/podmark/podmark/test/netns"
)

// Each target of iptables that writes a mark is read from the kernel, with the bits that may
// change, whichever variant and family has it. TPROXY and its like are for mangle PREROUTING.
func TestReadTargets(t *testing.T) {
	const packet, flow = foreign.PacketMark, foreign.ConntrackMark
	for _, tt := range []struct {
		target string
		field  foreign.Field
		bits   uint32
	}{
		{"MARK --set-xmark 0x10000/0x30000", packet, 0x30000},
		{"MARK --or-mark 0x80000000", packet, 0x80000000},
		{"CONNMARK --set-xmark 0x1/0x3", flow, 0x3},
		{"CONNMARK --save-mark --nfmask 0xff --ctmask 0xff00", flow, 0xffff},
		{"CONNMARK --restore-mark --nfmask 0xf0 --ctmask 0xf0", packet, 0xf0},
		{"SET --map-set marks src --map-mark", packet, foreign.All},
		{"SET --add-set marks src", "", 0},
		{"TPROXY --on-port 80 --tproxy-mark 0x40000/0xc0000", packet, 0xc0000},
		{"HMARK --hmark-tuple src --hmark-mod 10 --hmark-offset 100 --hmark-rnd 5", packet, foreign.All},
		{"NFQUEUE --queue-num 1", "", 0}, // what listens there is not known
	} {
		for _, command := range []string{"iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"} {
			t.Run(command+" "+tt.target, func(t *testing.T) {
				netns.Enter(t)
				run(t, "ipset", "create", "marks", "hash:ip", "skbinfo", "family", map[bool]string{true: "inet6", false: "inet"}[command[:3] == "ip6"])
				run(t, command, append([]string{"-t", "mangle", "-A", "PREROUTING", "-p", "tcp", "-j"}, strings.Fields(tt.target)...)...)
				report := foreign.Read(t.Context())
				if report.Error() != nil {
					t.Fatal(report.Error())
				}
				var writes []foreign.Write
				for _, r := range report.Rules {
					writes = append(writes, r.Writes...)
					if !slices.Equal(r.Places, []foreign.Place{{Hook: foreign.Prerouting, Priority: -150}}) {
						t.Errorf("it is passed at %v", r.Places)
					}
				}
				switch {
				case tt.field == "" && len(writes) == 0:
				case len(writes) != 1 || writes[0].Field != tt.field || writes[0].Bits != tt.bits || writes[0].Text == "":
					t.Errorf("%+v, want %s, bits %#x", writes, tt.field, tt.bits)
				}
			})
		}
	}
}

func run(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}
