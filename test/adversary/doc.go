// Package adversary attacks a node, and knows nothing of how it defends itself: pods,
// machines outside and the node's own sockets send frames, byte by byte, and what each of
// them got is compared with what may get through.
//
// An [attack] is an entry of a table. Each runs on every backend, in both families and on
// every way to attach a pod, unless it says otherwise:
//
//	{name: "an answer in another pod's live flow", run: func(s *scene) {
//		live := s.open(frame.UDP, s.client, s.x, 53)
//		s.pass("the resolver's own", s.x, live.fromServer(), s.client)
//		s.deny("forged", s.denied, live.fromServer())
//	}},
//
// pass and deny only note what to send, in order; scene.settle sends it all and compares.
// The driver settles at the end, an attack does where it changes the node in between.
//
// Who is there, and under which policy, is said where the cast is made. Nobody's own
// kernel speaks: pods and machines outside have no address once they are attached, so what
// is on the wire is what the attack put there.
//
// What a machine's kernel may lack (VRF, VLAN filtering, IPVS, some tunnels) runs in the
// lab: TestAttacks is for any kernel, TestAttacksInLab and TestVRFInLab are for the lab's,
// and what one leaves out the others have. Attacks by way of a service run in both: where there
// is no IPVS, rules stand in for it.
package adversary
