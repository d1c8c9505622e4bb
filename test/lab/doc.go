// Package lab puts a Kubernetes node together out of network namespaces, on a
// kernel with IPVS, and sends packets through it.
//
// A [Node] is one namespace that forwards, has kube-proxy's rules, and attaches
// pods with real CNI plugins through libcni. Hosts stand around it. Everything a
// test makes is removed at its end, and nodes share nothing but the kernel, so
// tests run in parallel:
//
//	lab.Backends(t, func(t *testing.T, backend lab.Backend) {
//		node := lab.NewNode(t, lab.Options{Backend: backend})
//		outside := node.AddHost("outside")
//		web := node.AddPod(lab.PodSpec{Name: "web", Network: node.PTP(node.Podmark(nil))})
//		web.Listen(lab.TCP, 8080)
//		node.AddServices(lab.Service{
//			Kind: lab.NodePort, Protocol: lab.TCP, Port: 30080,
//			Backends: []netip.AddrPort{web.At(lab.V4, 8080)},
//		})
//		lab.Table(t, []lab.Row{
//			{Name: "pod", From: outside.NS, Protocol: lab.TCP, To: web.At(lab.V4, 8080), By: "web"},
//			{Name: "service", From: outside.NS, Protocol: lab.TCP, To: node.At(lab.V4, 30080), By: "web"},
//			{Name: "nobody", From: outside.NS, Protocol: lab.TCP, To: node.At(lab.V4, 1), Want: lab.Refused},
//		})
//	})
//
// A test does not know which backend of podmark's it drives: where an outcome
// differs, the [Row] says so.
//
// Methods that take no [testing.TB] fail the test the node was made for: call
// them from that test's goroutine. [NS.Send], [NS.Probe] and [Stream.Ping] never
// fail a test and may be called from anywhere.
//
// The package knows nothing of podmark but the name of the plugin and its key for
// the backend. It never sleeps: it waits, up to a limit, for what it expects.
package lab
