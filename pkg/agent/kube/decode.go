package kube

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/desired"
)

// Of a Pod, little is kept, and most of what podmarkd does in a large cluster is to read
// Pods. So they are not decoded whole: of a message in protobuf only the fields that are
// kept are read, where they are, without a copy of the rest. Numbers of fields are those
// of k8s.io/api/core/v1/generated.proto and k8s.io/apimachinery/pkg/.../generated.proto.

// magic begins each message of the API in protobuf; a runtime.Unknown follows.
const magic = "k8s\x00"

// largest is how many bytes of one object are taken, as in client-go's own streams.
const largest = 16 << 20

// podSerializer decodes what the API server says of pods.
type podSerializer struct {
	runtime.NegotiatedSerializer
	words *interner
	node  string
}

// SupportedMediaTypes are those of client-go, which yield a *pod for each Pod.
func (s podSerializer) SupportedMediaTypes() []runtime.SerializerInfo {
	list := s.NegotiatedSerializer.SupportedMediaTypes()
	out := make([]runtime.SerializerInfo, len(list))
	for i, info := range list {
		info.Serializer = decoder{info.Serializer, s.words, s.node}
		if info.MediaType == runtime.ContentTypeProtobuf && info.StreamSerializer != nil {
			stream := *info.StreamSerializer
			stream.Serializer = events{stream.Serializer}
			info.StreamSerializer = &stream
		}
		out[i] = info
	}
	return out
}

// events decodes the events of a watch. Their objects are in memory of the stream, until it
// reads the next one: client-go has decoded them then.
type events struct{ runtime.Serializer }

// Decode implements [runtime.Decoder].
func (e events) Decode(
	data []byte,
	defaults *schema.GroupVersionKind,
	into runtime.Object,
) (runtime.Object, *schema.GroupVersionKind, error) {
	event, ok := into.(*metav1.WatchEvent)
	if !ok {
		return e.Serializer.Decode(data, defaults, into)
	}
	*event = metav1.WatchEvent{}
	for f, err := range fieldsOf(data) {
		switch {
		case err != nil:
			return nil, nil, fmt.Errorf("reading the event of a watch: %w", err)
		case f.number == 1:
			event.Type = eventType(f.bytes)
		case f.number == 2:
			for f, err := range fieldsOf(f.bytes) {
				if err != nil {
					return nil, nil, fmt.Errorf("reading the object of a watch's event: %w", err)
				}
				if f.number == 1 {
					event.Object.Raw = f.bytes
				}
			}
		}
	}
	return event, defaults, nil
}

// eventType is the word without memory of its own where it is a known one.
func eventType(b []byte) string {
	for _, t := range []watch.EventType{watch.Added, watch.Modified, watch.Deleted, watch.Bookmark, watch.Error} {
		if string(b) == string(t) {
			return string(t)
		}
	}
	return string(b)
}

// decoder decodes Pods, and leaves everything else to client-go.
type decoder struct {
	runtime.Serializer
	words *interner
	node  string
}

// Decode implements [runtime.Decoder].
func (d decoder) Decode(
	data []byte,
	defaults *schema.GroupVersionKind,
	into runtime.Object,
) (runtime.Object, *schema.GroupVersionKind, error) {
	if envelope, ok := bytes.CutPrefix(data, []byte(magic)); ok && into == nil {
		kind, raw, err := unwrap(envelope)
		if err != nil {
			return nil, nil, err
		}
		if kind == podKind {
			out, err := d.pod(raw)
			if err != nil {
				return nil, &podKind, err
			}
			return out, &podKind, nil
		}
	}
	out, kind, err := d.Serializer.Decode(data, defaults, into)
	if err != nil || into != nil {
		return out, kind, err
	}
	switch whole := out.(type) {
	case *corev1.Pod:
		return d.words.keep(factsOf(whole), d.node), kind, nil
	case *corev1.PodList:
		list := &pods{ListMeta: whole.ListMeta}
		for i := range whole.Items {
			list.Items = append(list.Items, d.words.keep(factsOf(&whole.Items[i]), d.node))
		}
		return list, kind, nil
	}
	return out, kind, nil
}

var (
	podKind  = corev1.SchemeGroupVersion.WithKind("Pod")
	listKind = corev1.SchemeGroupVersion.WithKind("PodList")
)

// unwrap reads a runtime.Unknown.
func unwrap(b []byte) (kind schema.GroupVersionKind, raw []byte, err error) {
	for f, err := range fieldsOf(b) {
		if err != nil {
			return kind, nil, fmt.Errorf("reading what object a message has: %w", err)
		}
		switch f.number {
		case 1:
			if kind, err = typeOf(f.bytes); err != nil {
				return kind, nil, err
			}
		case 2:
			raw = f.bytes
		}
	}
	return kind, raw, nil
}

// typeOf reads a runtime.TypeMeta.
func typeOf(b []byte) (schema.GroupVersionKind, error) {
	var version, kind []byte
	for f, err := range fieldsOf(b) {
		if err != nil {
			return schema.GroupVersionKind{}, fmt.Errorf("reading the kind of an object: %w", err)
		}
		switch f.number {
		case 1:
			version = f.bytes
		case 2:
			kind = f.bytes
		}
	}
	if string(version) == "v1" && string(kind) == podKind.Kind { // as a rule
		return podKind, nil
	}
	return schema.FromAPIVersionAndKind(string(version), string(kind)), nil
}

// scratch are facts that nobody uses.
var scratch = sync.Pool{New: func() any { return &facts{} }}

// pod reads a Pod.
func (d decoder) pod(b []byte) (*pod, error) {
	f := scratch.Get().(*facts)
	defer func() {
		clear(f.labels) // the message is not held any longer
		clear(f.ips)
		*f = facts{labels: f.labels[:0], ports: f.ports[:0], ips: f.ips[:0], named: f.named, addresses: f.addresses}
		scratch.Put(f)
	}()
	if err := f.read(b, d.words); err != nil {
		return nil, fmt.Errorf("reading a Pod of %d bytes: %w", len(b), err)
	}
	return d.words.keep(f, d.node), nil
}

func (f *facts) read(b []byte, w *interner) error {
	for part, err := range fieldsOf(b) {
		if err != nil {
			return err
		}
		switch part.number {
		case 1:
			err = f.readMeta(part.bytes)
		case 2:
			err = f.readSpec(part.bytes, w)
		case 3:
			err = f.readStatus(part.bytes)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (f *facts) readMeta(b []byte) error {
	for part, err := range fieldsOf(b) {
		if err != nil {
			return err
		}
		switch part.number {
		case 1:
			f.name = part.bytes
		case 3:
			f.namespace = part.bytes
		case 5:
			f.uid = part.bytes
		case 6:
			f.version = part.bytes
		case 8:
			f.created, err = secondsOf(part.bytes)
		case 9:
			f.going = true
			f.until, err = secondsOf(part.bytes)
		case 11:
			var label desired.Label
			label, err = entry(part.bytes)
			f.labels = append(f.labels, label)
		case 12:
			err = f.readAnnotation(part.bytes)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// readAnnotation reads one annotation, and keeps it if it matters.
func (f *facts) readAnnotation(b []byte) error {
	annotation, err := entry(b)
	if err != nil {
		return err
	}
	switch string(annotation.Key) {
	case configHash:
		f.hash = annotation.Value
	case config.SourcesAnnotation:
		f.sources = annotation.Value
	case metav1.InitialEventsAnnotationKey:
		f.end = annotation.Value
	}
	return nil
}

// secondsOf reads a metav1.Time, which is a Timestamp of protobuf: seconds since 1970.
func secondsOf(b []byte) (seconds int64, err error) {
	for part, err := range fieldsOf(b) {
		if err != nil {
			return 0, err
		}
		if part.number == 1 {
			seconds = int64(part.varint)
		}
	}
	return seconds, nil
}

// entry reads one of a map of strings.
func entry(b []byte) (e desired.Label, err error) {
	for part, err := range fieldsOf(b) {
		if err != nil {
			return e, err
		}
		switch part.number {
		case 1:
			e.Key = part.bytes
		case 2:
			e.Value = part.bytes
		}
	}
	return e, nil
}

func (f *facts) readSpec(b []byte, w *interner) error {
	for part, err := range fieldsOf(b) {
		if err != nil {
			return err
		}
		switch part.number {
		case 2, 20: // containers, and those of the beginning
			for part, err := range fieldsOf(part.bytes) {
				if err == nil && part.number == 6 {
					err = f.readPort(part.bytes, w)
				}
				if err != nil {
					return err
				}
			}
		case 10:
			f.node = part.bytes
		case 11:
			f.hostNetwork = part.varint != 0
		}
	}
	return nil
}

func (f *facts) readPort(b []byte, w *interner) error {
	var p corev1.ContainerPort
	for part, err := range fieldsOf(b) {
		if err != nil {
			return err
		}
		switch part.number {
		case 1:
			p.Name = w.word(part.bytes)
		case 3:
			p.ContainerPort = int32(part.varint)
		case 4:
			p.Protocol = corev1.Protocol(w.word(part.bytes))
		}
	}
	f.ports = append(f.ports, p)
	return nil
}

func (f *facts) readStatus(b []byte) error {
	for part, err := range fieldsOf(b) {
		if err != nil {
			return err
		}
		switch part.number {
		case 1:
			f.phase = part.bytes
		case 6:
			f.ip = part.bytes
		case 12:
			var ip []byte
			for part, err := range fieldsOf(part.bytes) {
				if err != nil {
					return err
				}
				if part.number == 1 {
					ip = part.bytes
				}
			}
			f.ips = append(f.ips, ip)
		}
	}
	return nil
}

// fieldOf is a field of a message: bytes, or else a number.
type fieldOf struct {
	number protowire.Number
	bytes  []byte
	varint uint64
}

// fieldsOf yields the fields of a message that are bytes or numbers, in its memory, up to
// the first that is damaged, which it yields as an error.
func fieldsOf(b []byte) iter.Seq2[fieldOf, error] {
	return func(yield func(fieldOf, error) bool) {
		for len(b) > 0 {
			number, kind, n := protowire.ConsumeTag(b)
			if n < 0 {
				yield(fieldOf{}, protowire.ParseError(n))
				return
			}
			b = b[n:]
			f := fieldOf{number: number}
			switch kind {
			case protowire.BytesType:
				f.bytes, n = protowire.ConsumeBytes(b)
			case protowire.VarintType:
				f.varint, n = protowire.ConsumeVarint(b)
			default:
				n = protowire.ConsumeFieldValue(number, kind, b)
			}
			if n < 0 {
				yield(f, protowire.ParseError(n))
				return
			}
			if b = b[n:]; !yield(f, nil) {
				return
			}
		}
	}
}

// list reads a PodList, of which it has one Pod at a time: all together are hundreds of
// megabytes. What is not in protobuf is decoded whole.
func (d decoder) list(from io.Reader) (runtime.Object, error) {
	r := bufio.NewReaderSize(from, 1<<16)
	if begin, err := r.Peek(len(magic)); err != nil || string(begin) != magic {
		whole, err := io.ReadAll(r)
		if err != nil {
			return nil, fmt.Errorf("reading a list: %w", err)
		}
		out, _, err := d.Decode(whole, nil, nil)
		return out, err
	}
	_, _ = r.Discard(len(magic)) // it has been seen
	out := &pods{}
	var kind schema.GroupVersionKind
	err := parts(r, func(number protowire.Number, length int64) error {
		switch number {
		case 1:
			b, err := take(r, length, nil)
			if err != nil {
				return err
			}
			if kind, err = typeOf(b); err == nil && kind != listKind {
				err = fmt.Errorf("it is a %s", kind)
			}
			return err
		case 2:
			return d.items(&io.LimitedReader{R: r, N: length}, out)
		}
		_, err := io.CopyN(io.Discard, r, length)
		return err
	})
	if err == nil && kind != listKind {
		err = errors.New("it does not say what it is")
	}
	if err != nil {
		return nil, fmt.Errorf("reading a PodList: %w", err)
	}
	return out, nil
}

// items reads the content of a PodList.
func (d decoder) items(content *io.LimitedReader, out *pods) error {
	r := bufio.NewReader(content)
	var buffer []byte
	err := parts(r, func(number protowire.Number, length int64) (err error) {
		if buffer, err = take(r, length, buffer); err != nil {
			return err
		}
		switch number {
		case 1:
			return out.ListMeta.Unmarshal(buffer)
		case 2:
			p, err := d.pod(buffer)
			out.Items = append(out.Items, p)
			return err
		}
		return nil
	})
	if err == nil && content.N > 0 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// parts calls f for each field of a message that is bytes, of that length, which f reads.
func parts(r *bufio.Reader, f func(number protowire.Number, length int64) error) error {
	for {
		tag, err := binary.ReadUvarint(r)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		number, kind := protowire.DecodeTag(tag)
		value, err := binary.ReadUvarint(r)
		switch {
		case err != nil:
			return noEnd(err)
		case kind == protowire.VarintType:
		case kind != protowire.BytesType || int64(value) < 0:
			return fmt.Errorf("field %d has type %d and length %d", number, kind, value)
		default:
			if err := f(number, int64(value)); err != nil {
				return noEnd(err)
			}
		}
	}
}

// take reads so many bytes, into the buffer where it has room.
func take(r io.Reader, length int64, buffer []byte) ([]byte, error) {
	if length > largest {
		return nil, fmt.Errorf("a part has %d bytes; at most %d are read", length, largest)
	}
	if int64(cap(buffer)) < length {
		buffer = make([]byte, length)
	}
	buffer = buffer[:length]
	_, err := io.ReadFull(r, buffer)
	return buffer, err
}

// noEnd is the error of a message that ends too early.
func noEnd(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
