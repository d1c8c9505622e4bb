package fakeapi

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
)

// event is an entry of a watch as it is sent.
type event struct {
	Type   watch.EventType `json:"type"`
	Object any             `json:"object"`
}

// watch sends what changes until the client goes, its time is over, or all watches
// are ended. It begins with the version that the client names, or with everything
// that is there: where the client asks for that, which a bookmark ends then, and where
// it names no version.
func (s *Server) watch(w http.ResponseWriter, r *http.Request, resource Resource, selector selector) {
	query := r.URL.Query()
	bookmarks, _ := strconv.ParseBool(query.Get("allowWatchBookmarks"))
	streaming, _ := strconv.ParseBool(query.Get("sendInitialEvents"))
	from := query.Get("resourceVersion")
	since, err := strconv.Atoi(from)
	if from != "" && err != nil {
		fail(w, apierrors.NewBadRequest(fmt.Sprintf("resourceVersion %q is none of this server's", from)))
		return
	}
	initial := streaming || since == 0

	s.mu.Lock()
	cut := s.cut
	var events []event
	if initial {
		since = s.version
		for _, o := range s.selected(resource, selector) {
			events = append(events, event{watch.Added, o})
		}
		if streaming {
			events = append(events, bookmark(resource, since, true))
		}
	}
	s.mu.Unlock()

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
	w.Header().Set("Content-Type", "application/json")
	for {
		more, version, changed, err := s.after(since, resource, selector)
		events, since = append(events, more...), version
		if err != nil {
			events = append(events, event{watch.Error, statusObject(err)})
		}
		for _, e := range events {
			if json.NewEncoder(w).Encode(e) != nil {
				return
			}
		}
		// Also where there is nothing yet: the client waits for the answer's header.
		if http.NewResponseController(w).Flush() != nil || err != nil {
			return
		}
		events = nil
		select {
		case <-changed:
		case <-mark:
			events = []event{bookmark(resource, since, false)}
		case <-over:
			return
		case <-cut:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// after lists what has changed since a version, as somebody with this selector sees
// it, and says which version that is and what is closed at the next change.
func (s *Server) after(since int, r Resource, selector selector) (events []event, version int, changed <-chan struct{}, err *apierrors.StatusError) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// One that is still to come is another server's.
	if since < s.oldest || since > s.version {
		return nil, since, s.changed, apierrors.NewResourceExpired(fmt.Sprintf("version %d is not between %d and %d", since, s.oldest, s.version))
	}
	for _, c := range s.history[since-s.oldest:] {
		if c.resource != r {
			continue
		}
		switch was, is := selector.picks(c.before), selector.picks(c.after); {
		case is && was:
			events = append(events, event{watch.Modified, c.after})
		case is:
			events = append(events, event{watch.Added, c.after})
		case was:
			// It is sent as it was, at the version at which it went.
			gone := c.before.DeepCopy()
			gone.SetResourceVersion(strconv.Itoa(c.version))
			events = append(events, event{watch.Deleted, gone})
		}
	}
	return events, s.version, s.changed, nil
}

// bookmark tells a watch how far it is. The one that ends what was there at the
// beginning says so.
func bookmark(r Resource, version int, initial bool) event {
	metadata := map[string]any{"resourceVersion": strconv.Itoa(version)}
	if initial {
		metadata["annotations"] = map[string]string{metav1.InitialEventsAnnotationKey: "true"}
	}
	return event{watch.Bookmark, map[string]any{"apiVersion": r.apiVersion(), "kind": r.Kind, "metadata": metadata}}
}
