// Package policy turns NetworkPolicy manifests into [desired.Policies].
//
// It owns what the API server and kubectl would have done to a manifest before
// a controller sees it: splitting a file into documents, strict decoding, the
// default namespace, defaulting and validation. A file read from disk has had
// none of that, and a policy that is enforced without it can allow what its
// author denied: a port without protocol would match nothing, a policy without
// policyTypes would isolate nobody.
//
// Four stages, each a function on values, make up [Options.Compile]:
//
//	decode    files -> networking.k8s.io/v1 NetworkPolicy and v1 Namespace
//	Default   protocol and policyTypes, as k8s.io/kubernetes pkg/apis/networking/v1
//	Validate  as k8s.io/kubernetes pkg/apis/networking/validation, for new objects before 1.36
//	compile   selectors, peers, ipBlocks and ports in the words of package desired
//
// [Object] does the same with a policy that an API server has judged and stored, and
// refuses nothing. [NamedPorts] reads what policies need of a pod. [ClusterObject] and
// [ValidateCluster] are for ClusterNetworkPolicy, which the programs do not read.
//
// The package is pure. It opens no file, knows no cluster and must not import
// client-go; which pod has which address is decided later, by [desired.Build].
//
// Anything wrong anywhere in manifests yields no policies at all, so that a mistake in one
// document never silently enforces the rest of a set that belongs together.
package policy
