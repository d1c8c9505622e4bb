// Package deploy holds what users deploy, in conf, to what reads it: Helm, kustomize,
// the types of the Kubernetes API, a Dockerfile parser, systemd, and podmarkd itself.
// What the DaemonSet's container may do is proven in plugins/podmarkd and test/lab. It is a
// module of its own, so that what the judges depend on never reaches podmark.
package deploy
