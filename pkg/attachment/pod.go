package attachment

import "strings"

// Pod is what a Kubernetes runtime tells the plugins of a pod; empty where none has called.
type Pod struct{ Namespace, Name, UID string }

// PodOf reads the keys and values of CNI_ARGS (K8S_POD_NAMESPACE, K8S_POD_NAME and K8S_POD_UID, which
// containerd and CRI-O set). Others are ignored.
func PodOf(args [][2]string) (p Pod) {
	for _, arg := range args {
		switch key, value := arg[0], arg[1]; key {
		case "K8S_POD_NAMESPACE":
			p.Namespace = value
		case "K8S_POD_NAME":
			p.Name = value
		case "K8S_POD_UID":
			p.UID = value
		}
	}
	return p
}

// ParseArgs takes CNI_ARGS apart, "key=value;key=value". What has no "=" is a key without a value.
func ParseArgs(cniArgs string) (args [][2]string) {
	for pair := range strings.SplitSeq(cniArgs, ";") {
		key, value, _ := strings.Cut(pair, "=")
		args = append(args, [2]string{key, value})
	}
	return args
}
