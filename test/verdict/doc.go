// Package verdict drives random packets through what a backend wrote into a real
// kernel and compares every verdict with desired.State.Allows.
//
// Frames are injected on the pods' ends of veth pairs and looked for at every
// other end and at the node itself, so thousands of packets a second can be
// judged: the first of a flow, straight or by way of a service, in one piece or in two, one of
// a flow from before or of one that is allowed, from who it says or from another, and errors. The states are
// random too. A failure prints the seed; PODMARK_SEED repeats it, PODMARK_ROUNDS asks for more.
package verdict
