// Package containerd installs podmark under the real containerd while that runs pods.
// It is a module of its own, so that the runtime's API never reaches podmark.
package containerd
