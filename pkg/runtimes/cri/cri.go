// Package cri asks container runtimes, by the Container Runtime Interface, which directories
// of CNI they read.
//
// It makes one call of gRPC with net/http: grpc and the types of cri-api would add 9 MB to
// podmarkd. Its tests have both at the other end.
package cri

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"syscall"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/podmark/podmark/pkg/runtimes"
)

// ErrNoDirectories: nothing at the socket says which directories are read: there is no socket, or a
// runtime that does not tell, as CRI-O up to 1.33.
var ErrNoDirectories = errors.New("no runtime says which directories it reads")

const (
	// patience is how long a runtime may take, and maxAnswer far above any answer, in bytes.
	patience  = 2 * time.Second
	maxAnswer = 16 << 20
	// unimplemented is gRPC's code of a service that is not there.
	unimplemented = "12"
)

// Places lists what runtimes say, by the value of --runtime-endpoint: one socket, which must
// answer; none where it is empty; or runtimes.Auto, the usual sockets on which a runtime
// listens.
func Places(ctx context.Context, endpoint string) ([]runtimes.Place, error) {
	if endpoint == "" {
		return nil, nil
	}
	if endpoint != runtimes.Auto {
		place, err := Ask(ctx, strings.TrimPrefix(endpoint, "unix://"))
		if errors.Is(err, ErrNoDirectories) {
			err = fmt.Errorf("%w: leave --runtime-endpoint empty, and give --cni-conf-dir and --cni-bin-dir", err)
		}
		if err != nil {
			return nil, err
		}
		return []runtimes.Place{place}, nil
	}
	var said []runtimes.Place
	for _, socket := range runtimes.Sockets {
		place, err := Ask(ctx, socket)
		switch {
		case errors.Is(err, ErrNoDirectories), errors.Is(err, syscall.ECONNREFUSED):
		case err != nil:
			return nil, fmt.Errorf("%w; --runtime-endpoint names another runtime, or none", err)
		default:
			said = append(said, place)
		}
	}
	return said, nil
}

// Ask asks the runtime at a socket.
func Ask(ctx context.Context, socket string) (runtimes.Place, error) {
	info, err := os.Stat(socket)
	if errors.Is(err, fs.ErrNotExist) {
		return runtimes.Place{}, fmt.Errorf("%w: there is no %q", ErrNoDirectories, socket)
	}
	if err == nil && info.Mode()&fs.ModeSocket == 0 {
		err = errors.New("it is not a socket")
	}
	var answer []byte
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, patience)
		defer cancel()
		answer, err = status(ctx, socket)
	}
	var place runtimes.Place
	if err == nil {
		place, err = directories(answer)
	}
	if err != nil {
		return runtimes.Place{}, fmt.Errorf("asking the runtime at %q: %w", socket, err)
	}
	place.How, place.From = "the runtime at "+socket+" says so", runtimes.Reported
	return place, nil
}

// status calls RuntimeService.Status with verbose set, and returns the message that comes
// back.
func status(ctx context.Context, socket string) ([]byte, error) {
	var dialer net.Dialer
	transport := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", socket)
		},
		Protocols: new(http.Protocols),
	}
	transport.Protocols.SetUnencryptedHTTP2(true)
	defer transport.CloseIdleConnections()
	question := protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1) // StatusRequest.verbose
	framed := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(question))), question...)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://localhost/runtime.v1.RuntimeService/Status",
		bytes.NewReader(framed))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/grpc")
	req.Header.Set("TE", "trailers")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	result := resp.Trailer
	if resp.Header.Get("Grpc-Status") != "" {
		result = resp.Header // there is no message
	}
	switch code := result.Get("Grpc-Status"); {
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("HTTP status %s", resp.Status)
	case code == unimplemented:
		return nil, fmt.Errorf("%w: it does not speak CRI v1", ErrNoDirectories)
	case code != "0":
		return nil, fmt.Errorf("gRPC status %q: %s", code, result.Get("Grpc-Message"))
	case len(body) < 5 || body[0] != 0 || uint64(binary.BigEndian.Uint32(body[1:])) != uint64(len(body)-5):
		return nil, errors.New("its answer is not one message of gRPC")
	}
	return body[5:], nil
}

// directories reads them from a StatusResponse: containerd has its configuration as JSON in
// info["config"], with several directories of plugins from 2.1 on, and so has CRI-O.
func directories(message []byte) (runtimes.Place, error) {
	text, err := configuration(message)
	if err != nil {
		return runtimes.Place{}, err
	}
	var c struct {
		CNI struct {
			ConfDir, BinDir string
			BinDirs         []string
		}
		CRIO struct {
			NetworkDir, PluginDir string
			CNIDefaultNetwork     string
			PluginDirs            []string
		}
	}
	if err := json.Unmarshal(text, &c); text != nil && err != nil {
		return runtimes.Place{}, fmt.Errorf("its configuration: %w", err)
	}
	for _, p := range []runtimes.Place{
		runtimes.NewPlace(c.CNI.ConfDir, append(c.CNI.BinDirs, c.CNI.BinDir)...),
		runtimes.NewPlace(c.CRIO.NetworkDir, append(c.CRIO.PluginDirs, c.CRIO.PluginDir)...),
	} {
		if p.Conf != "" && len(p.Bins) > 0 {
			p.Network = c.CRIO.CNIDefaultNetwork
			return p, nil
		}
	}
	return runtimes.Place{}, fmt.Errorf("%w: its status does not have them", ErrNoDirectories)
}

// configuration is info["config"] of a StatusResponse, nil without one: info is field 2, a
// map, whose entries are messages of a key 1 and a value 2.
func configuration(message []byte) ([]byte, error) {
	var found []byte
	err := eachBytes(message, func(field protowire.Number, entry []byte) error {
		if field != 2 {
			return nil
		}
		pair := map[protowire.Number][]byte{}
		err := eachBytes(entry, func(field protowire.Number, value []byte) error {
			pair[field] = value
			return nil
		})
		if string(pair[1]) == "config" {
			found = pair[2]
		}
		return err
	})
	return found, err
}

// eachBytes calls do for each field of a message that has a length.
func eachBytes(message []byte, do func(protowire.Number, []byte) error) error {
	for len(message) > 0 {
		field, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return protowire.ParseError(n)
		}
		message = message[n:]
		if n = protowire.ConsumeFieldValue(field, kind, message); n < 0 {
			return protowire.ParseError(n)
		}
		if kind == protowire.BytesType {
			value, _ := protowire.ConsumeBytes(message) // it has been looked at
			if err := do(field, value); err != nil {
				return err
			}
		}
		message = message[n:]
	}
	return nil
}
