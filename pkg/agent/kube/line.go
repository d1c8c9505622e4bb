package kube

import (
	"strings"
	"unicode"
)

// longestLine is how many characters of an error people are shown: an answer of the API may
// be a page of HTML, and a request has its whole selector in it.
const longestLine = 300

// Line is a text as one line that a person can read: without control characters, and
// where it has more than 300 characters without those in the middle. An error says what it
// is about at its beginning, and what is wrong at its end.
func Line(text string) string {
	text = strings.ToValidUTF8(text, "\uFFFD")
	line := []rune(strings.Join(strings.FieldsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }), " "))
	if len(line) <= longestLine {
		return string(line)
	}
	const gap = " ... "
	end := longestLine / 2
	begin := longestLine - len(gap) - end
	return string(line[:begin]) + gap + string(line[len(line)-end:])
}

// short is an error that reads as a [Line], and is what it was to who asks.
type short struct{ error }

func (s short) Error() string { return Line(s.error.Error()) }

func (s short) Unwrap() error { return s.error }

// shortened is err as a [Line]; nil for none.
func shortened(err error) error {
	if err == nil {
		return nil
	}
	return short{err}
}
