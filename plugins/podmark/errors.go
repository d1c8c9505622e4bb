package main

import (
	"errors"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/podmark/podmark/pkg/attachment"
	"github.com/podmark/podmark/pkg/config"
	"github.com/podmark/podmark/pkg/endpoint"
	"github.com/podmark/podmark/pkg/node"
	"github.com/podmark/podmark/pkg/podapi"
	"github.com/podmark/podmark/pkg/state"
)

// Codes of podmark's own; the CNI specification leaves 100 and up to plugins.
const (
	codeExhausted       uint = 100
	codeLockTimeout     uint = 101
	codeBackend         uint = 102
	codeDamaged         uint = 103
	codeNoHostInterface uint = 104
	codeNewer           uint = 105
)

// codes maps what callers branch on to a code and a short message. The first
// match counts, so the more particular stand first.
var codes = []struct {
	is   error
	code uint
	msg  string
}{
	{config.ErrSyntax, types.ErrDecodingFailure, "network configuration cannot be read"},
	{state.ErrExhausted, codeExhausted, "no free endpoint ID"},
	{state.ErrLockTimeout, codeLockTimeout, "podmark is busy"},
	{node.ErrNewer, codeNewer, "the node's state is a newer podmark's"},
	{state.ErrDamaged, codeDamaged, "podmark's state is damaged"},
	{node.ErrLayout, types.ErrInvalidNetworkConfig, "iptablesMarkMask changed"},
	{node.ErrTaken, types.ErrInvalidNetworkConfig, "iptablesMarkMask is in use"},
	{node.ErrNotFound, types.ErrUnknownContainer, "attachment unknown"},
	{node.ErrBackend, codeBackend, "backend unusable"},
	{node.ErrContended, types.ErrInvalidNetworkConfig, "address or source prefix in use"},
	{node.ErrSource, types.ErrInvalidNetworkConfig, "policy comes from elsewhere"},
	{node.ErrPromise, types.ErrTryAgainLater, "the pod's policies change all the time"},
	{podapi.ErrUnreachable, types.ErrTryAgainLater, "podmarkd does not answer"},
	{podapi.ErrUnknownPod, types.ErrTryAgainLater, "podmarkd does not know the pod"},
	{endpoint.ErrNoHostInterface, codeNoHostInterface, "no host-side interface"},
	{endpoint.ErrNoAddress, types.ErrInvalidNetworkConfig, "no address to police"},
	{endpoint.ErrNetns, types.ErrInvalidEnvironmentVariables, "CNI_NETNS unusable"},
}

// coded gives err a CNI code. What nobody branches on is a failure to read or
// write something.
func coded(err error) error {
	var done *types.Error
	if err == nil || errors.As(err, &done) {
		return err
	}
	var wrong *config.Error
	if errors.As(err, &wrong) {
		return types.NewError(types.ErrInvalidNetworkConfig, "invalid configuration", err.Error())
	}
	for _, c := range codes {
		if errors.Is(err, c.is) {
			return types.NewError(c.code, c.msg, err.Error())
		}
	}
	return types.NewError(types.ErrIOFailure, "podmark failed", err.Error())
}

// podOf is what CNI_ARGS says of the pod.
func podOf(cniArgs string) attachment.Pod { return attachment.PodOf(attachment.ParseArgs(cniArgs)) }
