package admin

import (
	"encoding/json"
	"flag"
	"maps"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/pyairtable-compose/outbox-cdc/monitoring"
)

var update = flag.Bool("update", false, "write status.schema.json and report.schema.json anew")

// schemaOf returns the JSON Schema of what encoding/json makes of a type.
func schemaOf(t *testing.T, typ reflect.Type) map[string]any {
	t.Helper()
	if typ == reflect.TypeFor[time.Time]() {
		return map[string]any{"type": "string", "format": "date-time"}
	}
	switch typ.Kind() {
	case reflect.Pointer:
		return schemaOf(t, typ.Elem())
	case reflect.String:
		return map[string]any{"type": "string"}
	case reflect.Bool:
		return map[string]any{"type": "boolean"}
	case reflect.Int, reflect.Int32, reflect.Int64:
		return map[string]any{"type": "integer"}
	case reflect.Float64:
		return map[string]any{"type": "number"}
	case reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(t, typ.Elem())}
	case reflect.Struct:
		properties, required := map[string]any{}, []string{}
		for f := range typ.Fields() {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Anonymous { // its fields stand among those of the whole
				of := schemaOf(t, f.Type)
				maps.Copy(properties, of["properties"].(map[string]any))
				required = append(required, of["required"].([]string)...)
				continue
			}
			if name == "" || !f.IsExported() {
				t.Fatalf("%s.%s has no name in JSON", typ, f.Name)
			}
			properties[name] = schemaOf(t, f.Type)
			if f.Type.Kind() == reflect.Pointer && options == "" { // it may be null
				properties[name] = map[string]any{"anyOf": []any{properties[name], map[string]any{"type": "null"}}}
			}
			if options == "" {
				required = append(required, name)
			}
		}
		return map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false}
	default:
		t.Fatalf("%s: this test does not know its JSON", typ)
		return nil
	}
}

// schemaFile is the JSON Schema of what a command prints.
type schemaFile struct {
	typ         reflect.Type
	path, title string
}

// checkSchema compares a schema with the type that it describes.
func checkSchema(t *testing.T, f schemaFile) {
	t.Helper()
	schema := schemaOf(t, f.typ)
	schema["$schema"], schema["title"] = "https://json-schema.org/draft/2020-12/schema", f.title
	text, err := json.MarshalIndent(schema, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	want := string(text) + "\n"
	if *update {
		if err := os.WriteFile(f.path, []byte(want), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(f.path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("%s (-want +got; -update writes it anew):\n%s", f.path, diff)
	}
}

// The schema says what "outbox-cdc status -o json" prints, and docs/status.md names each field of it.
func TestStatusSchema(t *testing.T) {
	t.Parallel()
	checkSchema(t, schemaFile{typ: reflect.TypeFor[Status](), path: "status.schema.json", title: "What outbox-cdc status -o json prints"})
	page, err := os.ReadFile("../docs/status.md")
	if err != nil {
		t.Fatal(err)
	}
	for typ := range map[reflect.Type]bool{
		reflect.TypeFor[Status](): true, reflect.TypeFor[StatusDatabase](): true, reflect.TypeFor[StatusSlot](): true, reflect.TypeFor[StatusInstance](): true,
		reflect.TypeFor[StatusSink](): true, reflect.TypeFor[StatusRows](): true, reflect.TypeFor[StatusLanes](): true, reflect.TypeFor[StatusCleanup](): true, reflect.TypeFor[StatusSizes](): true,
		reflect.TypeFor[StatusHolder](): true, reflect.TypeFor[StatusToDo](): true,
		reflect.TypeFor[monitoring.ObjectiveReport](): true, reflect.TypeFor[monitoring.TrendReport](): true, reflect.TypeFor[monitoring.CountInTime](): true,
	} {
		for f := range typ.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !strings.Contains(string(page), "`"+name+"`") {
				t.Errorf("docs/status.md does not name %s of %s", name, typ.Name())
			}
		}
	}
}
