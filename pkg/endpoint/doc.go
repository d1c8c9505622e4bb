// Package endpoint finds out where a pod's packets enter the host.
//
// [FromResult] asks a CNI prevResult and the kernel's links, and changes nothing.
package endpoint
