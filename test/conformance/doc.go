// Package conformance has cyclonus, a suite of tests for NetworkPolicy that nobody here
// wrote, judge podmark by packets. It is a module of its own, so that what cyclonus
// depends on never reaches podmark.
//
// cyclonus' interpreter is run as it is. It makes policies, pods and namespaces, has each
// pod speak to every other, and compares what got through with what it has computed. The
// [Cluster] that it is given is a node of package lab: its API is a fake one that podmarkd
// watches, its pods are attached by CNI, its services are in IPVS where the kernel has
// that, and a command that is executed in a pod connects from the pod's namespace.
//
// All pods are on one node, so that both of their sides are judged.
package conformance
