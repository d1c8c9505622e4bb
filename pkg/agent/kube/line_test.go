package kube

import (
	"errors"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"
)

func TestLine(t *testing.T) {
	for _, tt := range []struct{ name, text, want string }{
		{"nothing", "", ""},
		{"as it is", "pods is forbidden: no", "pods is forbidden: no"},
		{"lines", "one\ntwo\r\n\tthree", "one two three"},
		{"of a terminal", "a\x1b[31mred\x07", "a [31mred"},
		{"of another direction", "a\u202eb", "a b"},
		{"bytes that are no text", "a\xffb", "a\ufffdb"},
		{"letters of others", "größer 世界", "größer 世界"},
		{"the longest", strings.Repeat("ä", 300), strings.Repeat("ä", 300)},
		{"a long one", "Get " + strings.Repeat("x", 40_000) + ": connection refused", "Get " + strings.Repeat("x", 141) + " ... " + strings.Repeat("x", 130) + ": connection refused"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := Line(tt.text); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
	if err := shortened(io.EOF); !errors.Is(err, io.EOF) || shortened(nil) != nil {
		t.Errorf("%v is no io.EOF", err)
	}
}

// Whatever the text, a line is one, of characters that show, and no longer than it may be.
func TestLineOfAnything(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		b := make([]byte, random.IntN(2000))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		line := Line(string(b))
		if n := utf8.RuneCountInString(line); n > longestLine || !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("of %q: %d characters, %q", b, n, line)
		}
	}
}
