package desired

import (
	"bytes"
	"encoding/binary"
	"hash/maphash"
	"iter"
	"slices"
)

// LabelSet is the labels of an object in a few dozen bytes, of which a map needs hundreds.
// A nil one is empty. It is never changed.
type LabelSet struct {
	keys *keys
	// values are those of the keys one after the other, each after its length as a uvarint.
	values string
}

// keys are sorted. Sets that have the same share them.
type keys []string

// Label is one label, in memory of the caller.
type Label struct{ Key, Value []byte }

// Get is the value that a key has, and whether it has one.
func (s *LabelSet) Get(key string) (value string, ok bool) {
	if s == nil {
		return "", false
	}
	at := slices.Index(*s.keys, key)
	if at < 0 {
		return "", false
	}
	rest := s.values
	for range at {
		length, n := uvarint(rest)
		rest = rest[n+length:]
	}
	length, n := uvarint(rest)
	return rest[n : n+length], true
}

// All yields each key with its value, sorted by key.
func (s *LabelSet) All() iter.Seq2[string, string] {
	return func(yield func(key, value string) bool) {
		if s == nil {
			return
		}
		rest := s.values
		for _, key := range *s.keys {
			length, n := uvarint(rest)
			value := rest[n : n+length]
			if rest = rest[n+length:]; !yield(key, value) {
				return
			}
		}
	}
}

// Equal reports whether both have the same labels.
func (s *LabelSet) Equal(other *LabelSet) bool {
	if s == nil || other == nil {
		return s == other
	}
	return s == other || s.values == other.values && slices.Equal(*s.keys, *other.keys)
}

// uvarint reads what binary.AppendUvarint has written, and how many bytes that are.
func uvarint(s string) (value, n int) {
	for shift := 0; ; shift += 7 {
		b := s[n]
		n++
		if value |= int(b&0x7f) << shift; b < 0x80 {
			return value, n
		}
	}
}

// LabelSets makes label sets, and hands out one for labels that are equal: pods of one
// template have them in common. It is not safe for concurrent use.
type LabelSets struct {
	sets map[uint64]*LabelSet // by hash
	keys map[uint64]*keys
	seed maphash.Seed
	// values is where those of a set are put together.
	values []byte
}

// mostSets bounds how many are remembered of objects that may be gone.
const mostSets = 1 << 16

// NewLabelSets makes one that has handed out none.
func NewLabelSets() *LabelSets {
	return &LabelSets{sets: map[uint64]*LabelSet{}, keys: map[uint64]*keys{}, seed: maphash.MakeSeed()}
}

// Of is the set of these labels, which it sorts. Of two with one key the later counts.
func (l *LabelSets) Of(labels []Label) *LabelSet {
	if len(labels) == 0 {
		return nil
	}
	slices.SortStableFunc(labels, func(a, b Label) int { return bytes.Compare(a.Key, b.Key) })
	labels = last(labels)
	byKeys, byAll := maphash.Hash{}, maphash.Hash{}
	byKeys.SetSeed(l.seed)
	byAll.SetSeed(l.seed)
	for _, label := range labels {
		add(&byKeys, label.Key)
		add(&byAll, label.Key)
		add(&byAll, label.Value)
	}
	known := l.sets[byAll.Sum64()]
	if known.is(labels) {
		return known
	}
	if len(l.sets) > mostSets {
		clear(l.sets)
		clear(l.keys)
	}
	fresh := &LabelSet{keys: l.keys[byKeys.Sum64()]}
	if !fresh.keys.are(labels) {
		own := make(keys, len(labels))
		for i, label := range labels {
			own[i] = string(label.Key)
		}
		fresh.keys = &own
		l.keys[byKeys.Sum64()] = fresh.keys
	}
	l.values = l.values[:0]
	for _, label := range labels {
		l.values = append(binary.AppendUvarint(l.values, uint64(len(label.Value))), label.Value...)
	}
	fresh.values = string(l.values)
	l.sets[byAll.Sum64()] = fresh
	return fresh
}

// last keeps of sorted labels the last one of each key, in place.
func last(labels []Label) []Label {
	kept := labels[:0]
	for i, label := range labels {
		if i+1 == len(labels) || !bytes.Equal(label.Key, labels[i+1].Key) {
			kept = append(kept, label)
		}
	}
	return kept
}

func add(h *maphash.Hash, part []byte) {
	var length [8]byte
	binary.NativeEndian.PutUint64(length[:], uint64(len(part)))
	_, _ = h.Write(length[:]) // it never fails
	_, _ = h.Write(part)
}

func (k *keys) are(labels []Label) bool {
	return k != nil && slices.EqualFunc(*k, labels, func(key string, l Label) bool { return key == string(l.Key) })
}

func (s *LabelSet) is(labels []Label) bool {
	if s == nil || !s.keys.are(labels) {
		return false
	}
	i := 0
	for _, value := range s.All() {
		if value != string(labels[i].Value) {
			return false
		}
		i++
	}
	return true
}
