package nftables

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/podmark/podmark/pkg/mark"
	"github.com/podmark/podmark/test/netns"
)

// For any mask, the bits of the mask come from the map and all others stay: real
// packets with random marks, on masks at both ends of the word, with holes, and
// at random.
func TestSetMarkFrom(t *testing.T) {
	netns.Enter(t)
	seed := rand.Uint64()
	if text := os.Getenv("PODMARK_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("PODMARK_SEED=%d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	run(t, "", "ip", "link", "set", "lo", "up")
	masks := []uint32{0xffff0000, 0xffffff00 &^ mark.KubeProxy, 0x3fff, 3, 0x80000001, 0x55551555, 0xffff3fff, 0x00ff0000}
	for range 20 {
		masks = append(masks, r.Uint32()&^mark.KubeProxy|0x30000)
	}
	for _, mask := range masks {
		var pairs [][2]uint32 // a packet's mark, and what the map holds for it
		for seen := map[uint32]bool{}; len(pairs) < 3; {
			p := [2]uint32{r.Uint32(), r.Uint32() & mask}
			if !seen[p[0]&mask] {
				seen[p[0]&mask] = true
				pairs = append(pairs, p)
			}
		}
		if got, want := sendMarked(t, layout(t, mask), pairs), len(pairs); got != want {
			t.Errorf("mask %#x: %d of %d packets %#x came to the mark they should", mask, got, want, pairs)
		}
	}
}

// sendMarked sends a packet with the first mark of each pair through a map that
// holds the second, and returns how many came out with both put together.
func sendMarked(t *testing.T, l mark.Layout, pairs [][2]uint32) int {
	t.Helper()
	output := hook{nftables.ChainHookOutput, 0, ""}
	set := set{table: inet, name: "m", key: nftables.TypeMark, data: numbered}
	c := chain{table: inet, name: "c", hook: &output}
	commands := []command{addTable(inet), deleteTable(inet), addTable(inet), addSet(set), addChain(c)}
	c.rules = rules(on(setMarkFrom(l, maskedMark(l.Mask(), keyReg), set)))
	for i, p := range pairs {
		commands = append(commands, addElements(set, []element{{key: string(native(p[0] & l.Mask())), value: leadingTo(p[1], none)}})...)
		whole := mark.Mark{Value: p[0]&^l.Mask() | p[1], Mask: 0xffffffff}
		c.rules = append(c.rules, rule{parts: on(markIs(whole), counter()), comment: fmt.Sprint("pair ", i)})
	}
	commands = append(commands, fill(c)...)
	conn, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.close()
	if err := conn.commit(0, commands); err != nil {
		t.Fatal(err)
	}
	for _, p := range pairs {
		d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) (err error) {
			if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(p[0])) }); e != nil {
				return e
			}
			return err
		}}
		s, err := d.Dial("udp4", "127.0.0.1:9")
		if err != nil {
			t.Fatal(err)
		}
		_, _ = s.Write([]byte("x")) // nobody listens
		s.Close()
	}
	return strings.Count(run(t, "", "nft", "list", "ruleset"), "packets 1 ")
}
