package mark_test

import (
	"fmt"
	"math/bits"
	"math/rand/v2"
	"testing"

	"github.com/podmark/podmark/pkg/mark"
)

func ExampleLayout_Mark() {
	layout, _ := mark.NewLayout(0x00ff0f00)
	m := layout.Mark(0x123)
	fmt.Println(m)
	fmt.Printf("%#x\n", layout.Number(m.Value|0x4000))
	// Output:
	// 0x120300/0xff0f00
	// 0x123
}

func TestNewLayout(t *testing.T) {
	tests := []struct {
		mask     uint32
		capacity int // 0: refused
	}{
		{0xffff0000, 65534},
		{0xc0000000, 2},
		{0x80000001, 2},
		{0xffff3fff, 1<<30 - 2},
		{0x10101010, 14},
		{0, 0},
		{0x80000000, 0},
		{0xffffffff, 0},
		{0x00004000, 0},
		{0x00018000, 0},
	}
	for _, tt := range tests {
		layout, err := mark.NewLayout(tt.mask)
		if (err == nil) != (tt.capacity > 0) {
			t.Errorf("NewLayout(%#x): error %v, want refused %t", tt.mask, err, tt.capacity == 0)
			continue
		}
		if err == nil && layout.Capacity() != tt.capacity {
			t.Errorf("NewLayout(%#x).Capacity() = %d, want %d", tt.mask, layout.Capacity(), tt.capacity)
		}
	}
}

// Numbers survive the trip through any mask, stay inside it, keep their order
// and never collide.
func TestRoundTrip(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		layout, err := mark.NewLayout(r.Uint32() & r.Uint32() &^ mark.KubeProxy)
		if err != nil {
			continue
		}
		n := r.Uint32() & layout.Max()
		m := layout.Mark(n)
		if m.Mask != layout.Mask() || m.Value&^m.Mask != 0 {
			t.Fatalf("mask %#x: Mark(%d) = %v leaves the mask", layout.Mask(), n, m)
		}
		if got := layout.Number(m.Value | ^m.Mask); got != n {
			t.Fatalf("mask %#x: Number(Mark(%d)) = %d", layout.Mask(), n, got)
		}
		if n > 0 && layout.Mark(n-1).Value >= m.Value {
			t.Fatalf("mask %#x: Mark(%d) >= Mark(%d)", layout.Mask(), n-1, n)
		}
	}
}

func TestMarkPanicsOnNumberThatDoesNotFit(t *testing.T) {
	layout, err := mark.NewLayout(0x30000)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if recover() == nil {
			t.Error("Mark(4) in a 2-bit mask did not panic")
		}
	}()
	layout.Mark(4)
}

func TestWider(t *testing.T) {
	layout, err := mark.NewLayout(0xffff0000)
	if err != nil {
		t.Fatal(err)
	}
	for {
		wider, ok := layout.Wider()
		if !ok {
			break
		}
		if wider.Max() != layout.Max()*2+1 || wider.Mask()&mark.KubeProxy != 0 || wider.Mask()&layout.Mask() != layout.Mask() {
			t.Fatalf("Wider(%#x) = %#x", layout.Mask(), wider.Mask())
		}
		layout = wider
	}
	if n := bits.OnesCount32(layout.Mask()); n != 30 {
		t.Errorf("the widest mask has %d bits, want 30", n)
	}
}

func TestNextEpoch(t *testing.T) {
	layout, err := mark.NewLayout(0x30000)
	if err != nil {
		t.Fatal(err)
	}
	epoch, got := uint32(0), []uint32{}
	for range 5 {
		epoch = layout.NextEpoch(epoch)
		got = append(got, epoch)
	}
	if fmt.Sprint(got) != "[1 2 3 1 2]" {
		t.Errorf("epochs of a 2-bit mask: %v", got)
	}
}

func TestParseMask(t *testing.T) {
	for _, bad := range []string{"", "x", "0x", "-1", "0x1ffffffff", "4294967296", "0xffff0000 ", "1.5"} {
		if n, err := mark.ParseMask(bad); err == nil {
			t.Errorf("ParseMask(%q) = %#x, want an error", bad, n)
		}
	}
	for good, want := range map[string]uint32{"0xffff0000": 0xffff0000, "4294901760": 0xffff0000, "0XF0": 0xf0} {
		if n, err := mark.ParseMask(good); err != nil || n != want {
			t.Errorf("ParseMask(%q) = %#x, %v", good, n, err)
		}
	}
}
