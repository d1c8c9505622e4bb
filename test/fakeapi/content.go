package fakeapi

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// form is how an object is sent.
type form int

const (
	inJSON form = iota
	inProtobuf
	metadataInJSON
	metadataInProtobuf
	formCount
)

func (f form) protobuf() bool { return f == inProtobuf || f == metadataInProtobuf }
func (f form) partial() bool  { return f == metadataInJSON || f == metadataInProtobuf }

func (f form) contentType() string {
	if f.protobuf() {
		return runtime.ContentTypeProtobuf
	}
	return runtime.ContentTypeJSON
}

// kind is what a resource's objects are in this form.
func (f form) kind(r Resource) schema.GroupVersionKind {
	if f.partial() {
		return metav1.SchemeGroupVersion.WithKind("PartialObjectMetadata")
	}
	return r.gvk()
}

// negotiate takes the first of what a client accepts that there is; typed is whether
// the resource has protobuf.
func negotiate(accept string, typed bool) (form, error) {
	if accept == "" {
		return inJSON, nil
	}
	for part := range strings.SplitSeq(accept, ",") {
		media, parameters, err := mime.ParseMediaType(part)
		if err != nil {
			continue
		}
		metadata := false
		switch parameters["as"] {
		case "":
		case "PartialObjectMetadata", "PartialObjectMetadataList":
			metadata = parameters["g"] == metav1.GroupName && parameters["v"] == "v1"
			if !metadata {
				continue
			}
		default:
			continue
		}
		switch media {
		case runtime.ContentTypeJSON, "application/*", "*/*":
			if metadata {
				return metadataInJSON, nil
			}
			return inJSON, nil
		case runtime.ContentTypeProtobuf:
			if metadata {
				return metadataInProtobuf, nil
			}
			if typed {
				return inProtobuf, nil
			}
		}
	}
	return inJSON, fmt.Errorf("there is nothing of %q", accept)
}

// Protobuf objects come in an envelope, a message of type runtime.Unknown behind this.
const envelope = "k8s\x00"

// tag is the key of a field of a protobuf message whose value has a length.
func tag(field byte) byte { return field<<3 | 2 }

// opening is what stands before an object of a size in a form, and closing what
// stands behind it.
func (f form) opening(kind schema.GroupVersionKind, size int) []byte {
	version, name := kind.ToAPIVersionAndKind()
	if !f.protobuf() {
		return fmt.Appendf(nil, `{"kind":%q,"apiVersion":%q,`, name, version)
	}
	t := runtime.TypeMeta{APIVersion: version, Kind: name}
	named, err := t.Marshal()
	utilruntime.Must(err)
	out := append([]byte(envelope), tag(1))
	out = append(binary.AppendUvarint(out, uint64(len(named))), named...)
	return binary.AppendUvarint(append(out, tag(2)), uint64(size))
}

// whole is an object with its kind, of what is sent without it.
func (f form) whole(kind schema.GroupVersionKind, body []byte) []byte {
	out := f.opening(kind, len(body))
	if !f.protobuf() {
		body = body[1:] // the brace is open
	}
	return append(out, body...)
}

// unwrap takes an object out of its envelope.
func unwrap(b []byte) ([]byte, error) {
	raw, ok := bytes.CutPrefix(b, []byte(envelope))
	if !ok {
		return nil, errors.New("there is no envelope of protobuf")
	}
	var u runtime.Unknown
	err := u.Unmarshal(raw)
	return u.Raw, err
}

// writeList writes a list of objects in a form.
func (f form) writeList(w io.Writer, r Resource, meta metav1.ListMeta, items []*object) error {
	kind := f.kind(r)
	kind.Kind += "List"
	if !f.protobuf() {
		head, err := json.Marshal(meta)
		utilruntime.Must(err)
		_, err = fmt.Fprintf(w, `%s"metadata":%s,"items":[`, f.opening(kind, 0), head)
		for i, o := range items {
			if i > 0 {
				_, err = io.WriteString(w, ",")
			}
			if err == nil {
				_, err = w.Write(o.in(f))
			}
			if err != nil {
				return err
			}
		}
		_, end := io.WriteString(w, "]}\n")
		return errors.Join(err, end)
	}
	head, err := meta.Marshal()
	utilruntime.Must(err)
	// Every list has its metadata in field 1 and its items in field 2.
	start := append(binary.AppendUvarint([]byte{tag(1)}, uint64(len(head))), head...)
	prefix := func(o *object) []byte {
		return binary.AppendUvarint([]byte{tag(2)}, uint64(len(o.in(f))))
	}
	size := len(start)
	for _, o := range items {
		size += len(prefix(o)) + len(o.in(f))
	}
	_, err = w.Write(append(f.opening(kind, size), start...))
	for _, o := range items {
		if err == nil {
			_, err = w.Write(prefix(o))
		}
		if err != nil {
			return err
		}
		_, err = w.Write(o.in(f))
	}
	return err
}

// writeEvent writes an event of a watch, whose objects come without their kind.
func (f form) writeEvent(w io.Writer, t watch.EventType, kind schema.GroupVersionKind, body []byte) error {
	start := f.opening(kind, len(body))
	if !f.protobuf() {
		_, err := fmt.Fprintf(w, "{\"type\":%q,\"object\":%s%s}\n", t, start, body[1:]) // the brace is open
		return err
	}
	// A metav1.WatchEvent has its type in field 1, and in field 2 a runtime.RawExtension,
	// whose field 1 is the object.
	size := len(start) + len(body)
	raw := binary.AppendUvarint([]byte{tag(1)}, uint64(size))
	head := append(binary.AppendUvarint([]byte{tag(1)}, uint64(len(t))), t...)
	head = append(binary.AppendUvarint(append(head, tag(2)), uint64(len(raw)+size)), raw...)
	frame := binary.BigEndian.AppendUint32(nil, uint32(len(head)+size))
	for _, part := range [][]byte{frame, head, start, body} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}
