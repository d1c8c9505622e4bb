package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	yamlv2 "go.yaml.in/yaml/v2"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"
)

// toJSON converts what stands between two separators to JSON objects: none for
// comments only, several for a stream of JSON. Duplicate keys are reported, yet
// do not keep the rest from being read; keys are those that are no strings.
func toJSON(chunk []byte) (documents []json.RawMessage, keys, errs []error) {
	if utilyaml.IsJSONBuffer(chunk) {
		if stream, ok := jsonStream(chunk); ok {
			return stream, nil, nil
		}
	}
	var value any
	parser := yamlv2.NewDecoder(bytes.NewReader(chunk))
	parser.SetStrict(true)
	var duplicates *yamlv2.TypeError
	switch err := parser.Decode(&value); {
	case errors.Is(err, io.EOF):
		return nil, nil, nil
	case errors.As(err, &duplicates):
		for _, what := range duplicates.Errors {
			errs = append(errs, fmt.Errorf("yaml: %s", what))
		}
	case err != nil:
		return nil, nil, []error{err}
	}
	keys = keysNotStrings(nil, value)
	// YAML knows ends of documents that the reader does not, such as "..." and
	// old line breaks. The conversion below would drop what follows them.
	if err := parser.Decode(&value); !errors.Is(err, io.EOF) {
		return nil, keys, append(errs, errors.New(`text follows the end of the document: start every document with a line "---"`))
	}
	document, err := yaml.YAMLToJSON(chunk)
	switch {
	case err != nil:
		return nil, keys, append(errs, err)
	case string(document) == "null":
		return nil, keys, errs
	default:
		return []json.RawMessage{document}, keys, errs
	}
}

// jsonStream splits concatenated JSON values; it reports false for anything
// else, such as a YAML flow mapping.
func jsonStream(chunk []byte) (documents []json.RawMessage, ok bool) {
	decoder := json.NewDecoder(bytes.NewReader(chunk))
	for {
		var document json.RawMessage
		switch err := decoder.Decode(&document); {
		case errors.Is(err, io.EOF):
			return documents, true
		case err != nil:
			return nil, false
		}
		documents = append(documents, document)
	}
}

// keysNotStrings reports keys such as yes, on, 1 or ~, which YAML does not take
// for text. The conversion to JSON would make a label "true" of the first two,
// and of 1 and "1" one label with either value.
func keysNotStrings(path *field.Path, value any) []error {
	var errs []error
	switch value := value.(type) {
	case map[any]any:
		for key, entry := range value {
			name, ok := key.(string)
			if !ok {
				err := fmt.Errorf("key %v is not a string: put quotes around it", key)
				if path != nil {
					err = fmt.Errorf("%s: %w", path, err)
				}
				errs = append(errs, err)
				continue
			}
			errs = append(errs, keysNotStrings(path.Child(name), entry)...)
		}
	case []any:
		for i, entry := range value {
			errs = append(errs, keysNotStrings(path.Index(i), entry)...)
		}
	}
	slices.SortFunc(errs, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errs
}
