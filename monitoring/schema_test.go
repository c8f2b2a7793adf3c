package monitoring

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// schema is as much of JSON Schema as our schemas use.
type schema struct {
	Dialect              string            `json:"$schema"`
	Title, Description   string            //
	Ref                  string            `json:"$ref"`
	Defs                 map[string]schema `json:"$defs"`
	Type, Format         string            //
	Enum                 []string          `json:"enum"`
	Required             []string          //
	Properties           map[string]schema //
	Items                *schema           //
	AdditionalProperties json.RawMessage   // false, or a schema
}

// readSchema reads a schema. A keyword that check does not know is an error.
func readSchema(t *testing.T, name string) schema {
	t.Helper()
	file, err := os.Open(name)
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
	object, _ := value.(map[string]any)
	if types, known := typesOf(value), []string{"", "string", "boolean", "object", "array", "number", "integer"}; !slices.Contains(known, s.Type) {
		return fmt.Errorf("%s: type %q is not known here", path, s.Type)
	} else if s.Type != "" && !slices.Contains(types, s.Type) {
		return fmt.Errorf("%s: %v is no %s", path, value, s.Type)
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
	if elements, _ := value.([]any); s.Items != nil {
		for i, v := range elements {
			errs = append(errs, s.Items.check(fmt.Sprintf("%s[%d]", path, i), v, defs))
		}
	}
	return errors.Join(errs...)
}

// typesOf returns what JSON Schema calls the type of a value.
func typesOf(value any) []string {
	switch v := value.(type) {
	case string:
		return []string{"string"}
	case bool:
		return []string{"boolean"}
	case map[string]any:
		return []string{"object"}
	case []any:
		return []string{"array"}
	case float64:
		if v == math.Trunc(v) {
			return []string{"number", "integer"}
		}
		return []string{"number"}
	}
	return nil
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
	s := readSchema(t, "readyz.schema.json")
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
