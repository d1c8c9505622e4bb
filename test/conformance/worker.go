package conformance

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mattfenwick/cyclonus/pkg/worker"
	"github.com/podmark/podmark/test/lab"
	"golang.org/x/sys/unix"
)

// ExecuteRemoteCommand implements [kube.IKubernetes] for the one command that the
// interpreter executes: cyclonus' worker, which connects from the pod to many others. The
// first one after a change waits until that is enforced.
func (c *Cluster) ExecuteRemoteCommand(namespace, name, _ string, command []string) (stdout, stderr string, commandErr, err error) {
	results, err := c.execute(namespace+"/"+name, command)
	if err != nil {
		err = fmt.Errorf("executing in pod %s/%s: %w", namespace, name, err)
		c.t.Log(err) // the interpreter keeps it to itself
		return "", "", nil, err
	}
	b, err := json.Marshal(results)
	return string(b), "", nil, err
}

func (c *Cluster) execute(name string, command []string) ([]*worker.Result, error) {
	if len(command) != 3 || command[0] != "/worker" || command[1] != "--jobs" {
		return nil, fmt.Errorf("%q is not known here", command)
	}
	var batch worker.Batch
	if err := json.Unmarshal([]byte(command[2]), &batch); err != nil {
		return nil, err
	}
	if err := c.settle(); err != nil {
		return nil, err
	}
	running := c.pods[name]
	if running == nil {
		return nil, errors.New("it does not run")
	}
	calls, err := c.calls(batch)
	if err != nil {
		return nil, err
	}
	defer hangUp(calls)
	if err := running.Do(func() error { return dial(calls, running.Addr(c.Family)) }); err != nil {
		return nil, err
	}
	if err := c.listen(calls); err != nil {
		return nil, err
	}
	var results []*worker.Result
	for _, call := range calls {
		r := &worker.Result{Request: call.request}
		if !call.answered {
			r.Error = "no answer"
		}
		results = append(results, r)
	}
	return results, nil
}

// call is a request under way. All of a pod's are under way at once, in one thread.
type call struct {
	request  *worker.Request
	to       netip.AddrPort
	protocol lab.Protocol
	fd       int // -1 before and after
	begun    time.Time
	answered bool
}

func (c *Cluster) calls(batch worker.Batch) ([]*call, error) {
	var calls []*call
	for _, r := range batch.Requests {
		address, err := c.resolve(r.Host)
		if err != nil {
			return nil, err
		}
		calls = append(calls, &call{
			request: r, to: netip.AddrPortFrom(address, uint16(r.Port)), protocol: protocols[r.Protocol], fd: -1,
		})
	}
	return calls, nil
}

func hangUp(calls []*call) {
	for _, c := range calls {
		c.close()
	}
}

func (c *call) close() {
	if c.fd >= 0 {
		unix.Close(c.fd)
		c.fd = -1
	}
}

// dial begins all calls, from an address of the namespace that it is called in.
func dial(calls []*call, from netip.Addr) error {
	for _, c := range calls {
		if err := c.dial(from); err != nil {
			return fmt.Errorf("calling %v/%v: %w", c.to, c.protocol, err)
		}
	}
	return nil
}

func (c *call) dial(from netip.Addr) (err error) {
	c.begun = time.Now()
	domain, kind := unix.AF_INET, unix.SOCK_STREAM
	if from.Is6() {
		domain = unix.AF_INET6
	}
	if c.protocol == lab.UDP {
		kind = unix.SOCK_DGRAM
	}
	if c.fd, err = unix.Socket(domain, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, int(c.protocol)); err != nil {
		return err
	}
	if c.protocol == lab.SCTP {
		// An unbound socket offers the peer every address of its namespace, and no address
		// translation knows about the others.
		if err := unix.Bind(c.fd, sockaddr(netip.AddrPortFrom(from, 0))); err != nil {
			return err
		}
	}
	if err := unix.Connect(c.fd, sockaddr(c.to)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	if c.protocol == lab.UDP {
		_, err = unix.Write(c.fd, []byte("hello\n"))
	}
	return err
}

func sockaddr(at netip.AddrPort) unix.Sockaddr {
	if at.Addr().Is6() {
		return &unix.SockaddrInet6{Addr: at.Addr().As16(), Port: int(at.Port())}
	}
	return &unix.SockaddrInet4{Addr: at.Addr().As4(), Port: int(at.Port())}
}

// listen takes answers until all calls have one, or none has come to any pod for a while: a
// machine that is busy still works off the calls of others then, and how slow it is, the answers
// of before tell. A refusal is an error: policies drop, so it says that nobody is there.
func (c *Cluster) listen(calls []*call) error {
	for c.heard(); ; {
		var waiting []*call
		var fds []unix.PollFd
		for _, call := range calls {
			if call.fd < 0 {
				continue
			}
			ready := int16(unix.POLLOUT)
			if call.protocol == lab.UDP {
				ready = unix.POLLIN
			}
			waiting, fds = append(waiting, call), append(fds, unix.PollFd{Fd: int32(call.fd), Events: ready})
		}
		left := max(c.Silence, 2*time.Duration(c.slowest.Load())) - time.Since(time.Unix(0, c.lastHeard.Load()))
		if len(waiting) == 0 || left <= 0 {
			c.slowest.Store(c.slowest.Load() * 7 / 8) // the machine may have less to do now
			return nil
		}
		n, err := unix.Poll(fds, int(left.Milliseconds())+1)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("waiting for answers: %w", err)
		}
		if n <= 0 {
			continue
		}
		for i, call := range waiting {
			if fds[i].Revents == 0 {
				continue
			}
			if err := call.take(); err != nil {
				return fmt.Errorf("calling %v/%v: %w", call.to, call.protocol, err)
			}
			if call.answered {
				c.heard()
				c.slowest.Store(max(c.slowest.Load(), int64(time.Since(call.begun))))
			}
		}
	}
}

// heard notes that an answer has come to a pod of the cluster, or may come from now on.
func (c *Cluster) heard() { c.lastHeard.Store(time.Now().UnixNano()) }

// take ends a call that has got an answer, or that its own side has given up.
func (c *call) take() error {
	code, err := unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && code != 0 && unix.Errno(code) != unix.ETIMEDOUT {
		err = unix.Errno(code)
	}
	c.answered = err == nil && code == 0
	c.close()
	return err
}
