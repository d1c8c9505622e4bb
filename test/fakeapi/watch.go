package fakeapi

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/apimachinery/pkg/watch"
)

// watcher is a watch that is open. The server's lock guards what waits for it.
type watcher struct {
	selector selector
	meter    *meter
	waiting  []*change
	ready    chan struct{} // has an entry when something waits
	overrun  bool
}

// push adds a change. A watch that is too far behind is ended, as the real server
// does it: the client begins again.
func (w *watcher) push(n *change, limit int) {
	if len(w.waiting) >= limit {
		w.overrun, w.waiting = true, nil
	}
	if !w.overrun {
		w.waiting = append(w.waiting, n)
	}
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

// watch sends what changes until the client goes, its time is over, or all watches
// are ended. It begins with the version that the client names, or with everything
// that is there: where the client asks for that, which a bookmark ends then, and where
// it names no version.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, q request) {
	query := r.URL.Query()
	bookmarks, _ := strconv.ParseBool(query.Get("allowWatchBookmarks"))
	streaming, _ := strconv.ParseBool(query.Get("sendInitialEvents"))
	from := query.Get("resourceVersion")
	since, err := strconv.Atoi(from)
	if from != "" && err != nil {
		q.fail(w, apierrors.NewBadRequest(fmt.Sprintf("resourceVersion %q is none of this server's", from)))
		return
	}
	var over <-chan time.Time
	if seconds, err := strconv.Atoi(query.Get("timeoutSeconds")); err == nil {
		over = time.After(time.Duration(seconds) * time.Second)
	}
	var mark <-chan time.Time
	if bookmarks {
		ticker := time.NewTicker(s.BookmarkInterval)
		defer ticker.Stop()
		mark = ticker.C
	}

	watcher := &watcher{selector: q.selector, meter: q.meter, ready: make(chan struct{}, 1)}
	there, since, cut, expired := s.begin(q.resource, watcher, since, streaming || since == 0)
	defer s.end(q.resource, watcher)
	out := q.stream(w)
	if expired != nil {
		out.refuse(expired)
		return
	}
	for _, o := range there {
		if out.send(watch.Added, o) != nil {
			return
		}
	}
	if streaming && out.bookmark(since, true) != nil {
		return
	}
	for {
		// Also where there is nothing yet: the client waits for the answer's header.
		if out.flush() != nil {
			return
		}
		marked := false
		select {
		case <-watcher.ready:
		case <-mark:
			marked = true
		case <-over:
			return
		case <-cut:
			return
		case <-r.Context().Done():
			return
		}
		changes, version, overrun := s.take(watcher)
		if overrun {
			return
		}
		for _, n := range changes {
			if kind, o, ok := n.seen(q.selector); ok && out.send(kind, o) != nil {
				return
			}
		}
		if marked && out.bookmark(version, false) != nil {
			return
		}
	}
}

// begin opens a watch: from a version, or with what is there.
func (s *Server) begin(r Resource, w *watcher, since int, initial bool) (there []*object, version int, cut <-chan struct{}, expired *apierrors.StatusError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.collections[r]
	switch {
	case initial:
		there = c.selected(w.selector)
	case since < c.oldest || since > s.version: // one that is still to come is another server's
		return nil, 0, nil, apierrors.NewResourceExpired(fmt.Sprintf("version %d is not between %d and %d", since, c.oldest, s.version))
	default:
		if w.waiting = c.since(since); len(w.waiting) > 0 {
			w.ready <- struct{}{}
		}
	}
	c.add(w)
	return there, s.version, s.cut, nil
}

func (s *Server) end(r Resource, w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.collections[r].leave(w)
}

// take hands out what waits, and the version up to which that is everything.
func (s *Server) take(w *watcher) (changes []*change, version int, overrun bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changes, w.waiting = w.waiting, nil
	return changes, s.version, w.overrun
}

// stream is the answer of a watch.
type stream struct {
	request
	w   *bufio.Writer
	out *http.ResponseController
}

func (q request) stream(w http.ResponseWriter) stream {
	contentType := q.form.contentType()
	if q.form.protobuf() {
		contentType += ";stream=watch"
	}
	w.Header().Set("Content-Type", contentType)
	return stream{q, bufio.NewWriterSize(w, 64<<10), http.NewResponseController(w)}
}

func (s stream) flush() error { return errors.Join(s.w.Flush(), s.out.Flush()) }

func (s stream) send(t watch.EventType, o *object) error {
	s.meter.objects.Add(1)
	return s.form.writeEvent(s.w, t, s.form.kind(s.resource), o.in(s.form))
}

// bookmark tells a watch how far it is. The one that ends what was there at the
// beginning says so.
func (s stream) bookmark(version int, initial bool) error {
	o := s.blank
	if s.form.partial() {
		o = &metav1.PartialObjectMetadata{}
	}
	o.SetResourceVersion(strconv.Itoa(version))
	o.SetAnnotations(nil)
	if initial {
		o.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
	}
	body, err := marshal(o, s.form)
	utilruntime.Must(err)
	return s.form.writeEvent(s.w, watch.Bookmark, s.form.kind(s.resource), body)
}

// refuse ends the watch with an error. Nobody is left to tell when that fails.
func (s stream) refuse(err *apierrors.StatusError) {
	body, kind := statusOf(err, s.form)
	_ = errors.Join(s.form.writeEvent(s.w, watch.Error, kind, body), s.flush())
}
