package node

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"github.com/podmark/podmark/pkg/desired"
	"github.com/podmark/podmark/pkg/state"
)

// ErrNewer: the state directory is that of a podmark that this one does not understand.
var ErrNewer = errors.New("the state directory is a newer podmark's")

// header is what every format of node.json has.
type header struct {
	// Format is that of the state directory, of the podmark that wrote it last; 0 of one that did
	// not say.
	Format int `json:"format,omitempty"`
	// Reads is the oldest format whose podmark may go on from there.
	Reads int `json:"reads,omitempty"`
}

// readable is ErrNewer for what this podmark must not go on from.
func (h header) readable(path string) error {
	if h.Reads <= format {
		return nil
	}
	return fmt.Errorf("%w: %q has format %d, and this podmark knows those up to %d: use the one that wrote it, or run 'podmarkctl uninstall' with that", ErrNewer, path, h.Format, format)
}

// decodeNodeFile reads node.json: first what every format has. Errors: fs.ErrNotExist, ErrNewer,
// state.ErrDamaged.
func (n Node) decodeNodeFile() (f nodeFile, err error) {
	path := n.Store.Path(state.NodeFile)
	b, err := state.Read(path)
	if err != nil {
		return f, err
	}
	var h header
	if json.Unmarshal(b, &h) == nil {
		if err := h.readable(path); err != nil {
			return f, err
		}
	}
	if err := json.Unmarshal(b, &f); err != nil {
		return nodeFile{}, fmt.Errorf("%w: %q: %w", state.ErrDamaged, path, err)
	}
	return f, nil
}

// ErrLost: the node's policies are not those that were in force. It is an state.ErrDamaged.
var ErrLost = fmt.Errorf("%w: the policies in force are lost", state.ErrDamaged)

// errUninstalling: an uninstall was interrupted. As good as if podmark had never run here.
var errUninstalling = fmt.Errorf("an uninstall was interrupted: %w", fs.ErrNotExist)

// hash is that of the content of a file.
type hash string

// noFile is that of a file that does not count, whether it is there or not.
const noFile hash = "none"

func hashOf(b []byte) hash {
	sum := sha256.Sum256(b)
	return hash(hex.EncodeToString(sum[:]))
}

// withPolicies is f with the policies that it names. They are lost where the file has others, or
// is not there: who does not know them must not write a rule, or he would open pods.
func (n Node) withPolicies(f nodeFile) (nodeFile, error) {
	if f.Format > 0 && f.PoliciesHash == noFile {
		return f, nil
	}
	p, is, err := n.cachedPolicies()
	switch {
	case err != nil && !errors.Is(err, state.ErrDamaged):
		return f, err
	case err != nil:
	case f.Format == 0 || is == f.PoliciesHash:
		f.PoliciesHash = is
	case is == f.FormerHash: // a change ended between the two files
		f.PoliciesHash, f.Synced = is, false
	default:
		err = fmt.Errorf("the SHA-256 of %q is %s, and %s says %s", n.Store.Path(state.PoliciesFile), is, state.NodeFile,
			f.PoliciesHash)
	}
	if err != nil {
		f.policiesLost = fmt.Errorf("%w: %w; what is in the kernel stays: apply the policies again; with \"policy\": \"kubernetes\" podmarkd does, as soon as it runs and has the API", ErrLost, err)
		return f, nil
	}
	f.Policies, f.FormerHash = p, ""
	return f, nil
}

// readPolicies reads the file of policies and says what it has; noFile where there is none.
func (n Node) readPolicies() (p desired.Policies, is hash, err error) {
	path := n.Store.Path(state.PoliciesFile)
	b, err := state.Read(path)
	if errors.Is(err, fs.ErrNotExist) {
		return p, noFile, nil
	}
	if err != nil {
		return p, "", err
	}
	if err := json.Unmarshal(b, &p); err != nil {
		return p, "", fmt.Errorf("%w: %q: %w", state.ErrDamaged, path, err)
	}
	return p, hashOf(b), nil
}
