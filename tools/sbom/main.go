// Command sbom edits the document that cyclonedx-gomod writes: sbom DATE <in >out. It replaces the time of the build by DATE and removes what
// describes the machine of the build, so that a build elsewhere has the same bytes. It removes the hashes of the binary, because no release has
// that binary. It sets licences that cyclonedx-gomod does not find, or finds wrongly.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

// licences are those of modules with these names, or with names below them: what cyclonedx-gomod says of them is not what their files say.
var licences = map[string][]string{
	"std":                           {"BSD-3-Clause"}, // Go's own library is no module of the cache
	"golang.org/x":                  {"BSD-3-Clause"},
	"github.com/klauspost/compress": {"Apache-2.0", "BSD-3-Clause", "MIT"},
	"go.opentelemetry.io/otel":      {"Apache-2.0", "BSD-3-Clause"},
	"go.yaml.in/yaml/v3":            {"Apache-2.0", "MIT"},
}

type object = map[string]any

func main() {
	if err := run(os.Stdin, os.Stdout, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "sbom:", err)
		os.Exit(1)
	}
}

func run(in io.Reader, out io.Writer, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("one date is needed")
	}
	var document struct {
		Metadata   object   `json:"metadata"`
		Components []object `json:"components"`
	}
	text, err := io.ReadAll(in)
	if err != nil {
		return err
	}
	all := object{}
	if err := json.Unmarshal(text, &all); err != nil {
		return err
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return err
	}
	document.Metadata["timestamp"] = args[0]
	tools, _ := document.Metadata["tools"].([]any)
	for _, tool := range tools {
		if t, ok := tool.(object); ok {
			delete(t, "hashes")
		}
	}
	properties, _ := document.Metadata["properties"].([]any)
	document.Metadata["properties"] = slices.DeleteFunc(properties, func(p any) bool {
		name, _ := p.(object)["name"].(string)
		return strings.HasPrefix(name, "cdx:gomod:binary:")
	})
	for _, c := range document.Components {
		name, _ := c["name"].(string)
		for module, ids := range licences {
			if strings.HasPrefix(name+"/", module+"/") {
				c["evidence"] = object{"licenses": choices(ids)}
			}
		}
	}
	all["metadata"], all["components"] = document.Metadata, document.Components
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(all)
}

func choices(ids []string) (all []object) {
	for _, id := range ids {
		all = append(all, object{"license": object{"id": id}})
	}
	return all
}
