package conflist

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// element is one entry of "plugins": its bytes are conf[start:end].
type element struct {
	start, end int
	plugin     string
}

// layout is where in a list the entries are.
type layout struct {
	// open is after the bracket that opens the array.
	open     int
	elements []element
}

// scan finds the entries of a list that libcni takes. A list without "plugins" has none.
func scan(conf []byte) (layout, error) {
	if _, err := Parse(conf); err != nil {
		return layout{}, err
	}
	d := json.NewDecoder(bytes.NewReader(conf))
	if _, err := d.Token(); err != nil {
		return layout{}, fmt.Errorf("%w: %w", ErrSyntax, err)
	}
	var plugins json.RawMessage
	var end int
	for d.More() {
		key, err := d.Token()
		var value json.RawMessage
		if err = errors.Join(err, d.Decode(&value)); err != nil {
			return layout{}, fmt.Errorf("%w: %w", ErrSyntax, err)
		}
		// Of a key that is there twice, the last counts.
		if key == "plugins" {
			plugins, end = value, int(d.InputOffset())
		}
	}
	if plugins == nil {
		return layout{}, nil
	}
	l, err := scanArray(plugins, end-len(plugins))
	if err != nil {
		return layout{}, fmt.Errorf("%w: \"plugins\": %w", ErrSyntax, err)
	}
	return l, nil
}

// scanArray finds the elements of an array that stands at offset base.
func scanArray(array []byte, base int) (layout, error) {
	d := json.NewDecoder(bytes.NewReader(array))
	if _, err := d.Token(); err != nil {
		return layout{}, err
	}
	l := layout{open: base + int(d.InputOffset())}
	for d.More() {
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return layout{}, err
		}
		plugin, err := EntryType(value)
		if err != nil {
			return layout{}, err
		}
		end := base + int(d.InputOffset())
		l.elements = append(l.elements, element{start: end - len(value), end: end, plugin: plugin})
	}
	return l, nil
}

// separator is what stands between two entries: a comma and the white space of the
// list. Only that can be there, so it is copied from the last two.
func (l layout) separator(conf []byte) []byte {
	n := len(l.elements)
	if n > 1 {
		return conf[l.elements[n-2].end:l.elements[n-1].start]
	}
	return append([]byte{','}, conf[l.open:l.elements[0].start]...)
}

// style is how an entry is written.
type style struct {
	// prefix starts each line but the first, unit is a step of indentation.
	prefix, unit string
	newline      string
	// oneLine entries have a space after colons and commas, if spaced.
	oneLine, spaced bool
}

// styleOf is the style of an entry of the list.
func styleOf(conf []byte, e element) style {
	text := string(conf[e.start:e.end])
	line := string(conf[bytes.LastIndexByte(conf[:e.start], '\n')+1 : e.start])
	s := style{prefix: indentation(line), unit: "  ", newline: "\n"}
	first, rest, lines := strings.Cut(text, "\n")
	if !lines {
		s.oneLine, s.spaced = true, strings.Contains(text, `": `)
		return s
	}
	if strings.HasSuffix(first, "\r") {
		s.newline = "\r\n"
	}
	if unit, ok := strings.CutPrefix(indentation(rest), s.prefix); ok && unit != "" {
		s.unit = unit
	}
	return s
}

// indentation is the white space that a line starts with.
func indentation(line string) string {
	return line[:len(line)-len(strings.TrimLeft(line, " \t"))]
}

// format writes a valid entry in the style. Strings and numbers stay as they are.
func (s style) format(entry []byte) []byte {
	var out bytes.Buffer
	// These fail for invalid JSON only. JSON has no newline inside a string, so
	// each one here is of the indentation.
	switch {
	case s.oneLine && s.spaced:
		_ = json.Indent(&out, entry, "", "")
		return bytes.ReplaceAll(bytes.ReplaceAll(bytes.TrimSpace(out.Bytes()), []byte(",\n"), []byte(", ")), []byte("\n"),
			nil)
	case s.oneLine:
		_ = json.Compact(&out, entry)
	default:
		_ = json.Indent(&out, entry, s.prefix, s.unit)
	}
	return bytes.ReplaceAll(bytes.TrimSpace(out.Bytes()), []byte("\n"), []byte(s.newline))
}
