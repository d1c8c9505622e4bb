package fakeapi

import (
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
)

// Traffic is what a client has asked about a resource and was sent.
type Traffic struct {
	// Gets, Lists, Watches and Writes are requests, pages of a list among them.
	Gets, Lists, Watches, Writes int64
	// Objects were sent in all answers; bookmarks are none. Bytes are those of the
	// bodies: HTTP's and TLS's own are not counted.
	Objects, Bytes int64
	// Open are the watches that are open, Waiting the changes that those have not
	// taken yet; what waits in sockets is not known.
	Open, Waiting int64
}

// Add is the sum of two.
func (t Traffic) Add(o Traffic) Traffic {
	return Traffic{
		Gets: t.Gets + o.Gets, Lists: t.Lists + o.Lists, Watches: t.Watches + o.Watches, Writes: t.Writes + o.Writes,
		Objects: t.Objects + o.Objects, Bytes: t.Bytes + o.Bytes,
		Open: t.Open + o.Open, Waiting: t.Waiting + o.Waiting,
	}
}

// Traffic is what all clients have asked for and were sent since the server was made:
// by client, which is the bearer token it shows, or empty, and by resource, as in
// "networkpolicies.networking.k8s.io".
func (s *Server) Traffic() map[string]map[string]Traffic {
	out := map[string]map[string]Traffic{}
	s.mu.RLock()
	defer s.mu.RUnlock()
	open := map[*meter]Traffic{}
	for _, c := range s.collections {
		for _, watches := range c.watches {
			for w := range watches {
				open[w.meter] = open[w.meter].Add(Traffic{Open: 1, Waiting: int64(len(w.waiting))})
			}
		}
	}
	s.meters.each(func(client string, r Resource, m *meter) {
		if out[client] == nil {
			out[client] = map[string]Traffic{}
		}
		out[client][r.groupResource().String()] = Traffic{
			Gets: m.gets.Load(), Lists: m.lists.Load(), Watches: m.watches.Load(), Writes: m.writes.Load(),
			Objects: m.objects.Load(), Bytes: m.bytes.Load(),
		}.Add(open[m])
	})
	return out
}

// meter counts for one client and resource.
type meter struct {
	gets, lists, watches, writes, objects, bytes atomic.Int64
}

type metered struct {
	client   string
	resource Resource
}

// meters are all there are.
type meters struct {
	mu sync.Mutex
	of map[metered]*meter
}

func (m *meters) get(client string, r Resource) *meter {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := metered{client, r}
	if m.of[key] == nil {
		if m.of == nil {
			m.of = map[metered]*meter{}
		}
		m.of[key] = &meter{}
	}
	return m.of[key]
}

func (m *meters) each(f func(client string, r Resource, m *meter)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for key, one := range m.of {
		f(key.client, key.resource, one)
	}
}

// clientOf is who asks.
func clientOf(r *http.Request) string {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	return token
}

// counted counts the bytes of an answer.
type counted struct {
	http.ResponseWriter
	meter *meter
}

// Write implements [http.ResponseWriter].
func (c counted) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b)
	c.meter.bytes.Add(int64(n))
	return n, err
}

// Unwrap lets an [http.ResponseController] through.
func (c counted) Unwrap() http.ResponseWriter { return c.ResponseWriter }
