package monitoring

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// schema is as much of JSON Schema as readyz.schema.json uses.
type schema struct {
	Dialect              string            `json:"$schema"`
	Title, Description   string            //
	Ref                  string            `json:"$ref"`
	Defs                 map[string]schema `json:"$defs"`
	Type, Format         string            //
	Enum                 []string          `json:"enum"`
	Required             []string          //
	Properties           map[string]schema //
	AdditionalProperties json.RawMessage   // false, or a schema
}

// readyzSchema reads the schema that describes the answer of /readyz. A keyword that check does not know is an error.
func readyzSchema(t *testing.T) schema {
	t.Helper()
	file, err := os.Open("readyz.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	var s schema
	decoder := json.NewDecoder(file)
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&s); err != nil {
		t.Fatal(err)
	}
	return s
}

// check returns what is wrong with a value at this path. defs are the $defs of the whole schema.
func (s schema) check(path string, value any, defs map[string]schema) error {
	if s.Ref != "" {
		to, known := defs[strings.TrimPrefix(s.Ref, "#/$defs/")]
		if !known {
			return fmt.Errorf("%s: no %s", path, s.Ref)
		}
		return to.check(path, value, defs)
	}
	text, isText := value.(string)
	if s.Enum != nil && (!isText || !slices.Contains(s.Enum, text)) {
		return fmt.Errorf("%s: %v is none of %q", path, value, s.Enum)
	}
	object, isObject := value.(map[string]any)
	_, isBool := value.(bool)
	switch s.Type {
	case "":
	case "string", "boolean", "object":
		if (s.Type == "string") != isText || (s.Type == "boolean") != isBool || (s.Type == "object") != isObject {
			return fmt.Errorf("%s: %v is no %s", path, value, s.Type)
		}
	default:
		return fmt.Errorf("%s: type %q is not known here", path, s.Type)
	}
	if s.Format == "date-time" {
		if at, err := time.Parse(time.RFC3339, text); err != nil || at.IsZero() {
			return fmt.Errorf("%s: %q is no time", path, text)
		}
	}
	var errs []error
	for _, name := range s.Required {
		if _, has := object[name]; !has {
			errs = append(errs, fmt.Errorf("%s: %s is missing", path, name))
		}
	}
	for name, v := range object {
		errs = append(errs, s.checkProperty(path+"."+name, name, v, defs))
	}
	return errors.Join(errs...)
}

func (s schema) checkProperty(path, name string, value any, defs map[string]schema) error {
	if property, known := s.Properties[name]; known {
		return property.check(path, value, defs)
	}
	if string(s.AdditionalProperties) == "false" {
		return fmt.Errorf("%s is not in the schema", path)
	}
	var others schema
	if err := json.Unmarshal(s.AdditionalProperties, &others); err != nil {
		return fmt.Errorf("%s: additionalProperties: %w", path, err)
	}
	return others.check(path, value, defs)
}

// The schema that the documentation shows refuses answers that are wrong.
func TestSchemaRefuses(t *testing.T) {
	t.Parallel()
	s := readyzSchema(t)
	for answer, tells := range map[string]string{
		`[]`:                              "is no object",
		`{"status": "ok", "ready": true}`: "components is missing",
		`{"status": "green", "ready": true, "components": {}}`:                                                "green is none of",
		`{"status": "ok", "ready": "yes", "components": {}}`:                                                  "yes is no boolean",
		`{"status": "ok", "ready": true, "components": {}, "x": 1}`:                                           "x is not in the schema",
		`{"status": "ok", "ready": true, "components": {"a": {"status": "ok"}}}`:                              "since is missing",
		`{"status": "ok", "ready": true, "components": {"a": {"status": "ok", "since": "now"}}}`:              `"now" is no time`,
		`{"status": "ok", "ready": true, "components": {"a": {"ok": true, "since": "2026-01-02T03:04:05Z"}}}`: "status is missing",
	} {
		var value any
		if err := json.Unmarshal([]byte(answer), &value); err != nil {
			t.Fatal(err)
		}
		if err := s.check("answer", value, s.Defs); err == nil || !strings.Contains(err.Error(), tells) {
			t.Errorf("%s: %v, want %q", answer, err, tells)
		}
	}
}
