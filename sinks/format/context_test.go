package format

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestContextOf(t *testing.T) {
	t.Parallel()
	const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	for metadata, want := range map[string]Context{
		"":                              {},
		"null":                          {},
		"{}":                            {},
		`{"user":"u","entity":1}`:       {},
		`{"content_type":"text/plain"}`: {ContentType: "text/plain"},
		`{"traceparent":"` + parent + `","tracestate":"a=1"}`:       {TraceParent: parent, TraceState: "a=1"},
		"{\n\t\"traceparent\" : \"" + parent + "\" }":               {TraceParent: parent},
		`{"tracestate":"a=1"}`:                                      {}, // of no meaning alone
		`{"tracestate":"a=1","content_type":"a/b"}`:                 {ContentType: "a/b"},
		`{"traceparent":"","tracestate":"a=1"}`:                     {},
		`{"traceparent":7,"content_type":["a/b"],"tracestate":{}}`:  {},
		`{"traceparent":null,"content_type":null}`:                  {},
		`{"Traceparent":"x","CONTENT_TYPE":"a/b"}`:                  {}, // names are those, and no other case of them
		`{"nested":{"traceparent":"x","content_type":"a/b"}}`:       {}, // at the top only
		`{"traceparent":"\u0061\"é","content_type":"a/b; c=\"d\""}`: {TraceParent: `a"é`, ContentType: `a/b; c="d"`},
		`{"traceparent":"first","traceparent":"last"}`:              {TraceParent: "last"},
		`["traceparent"]`:                {},
		`"traceparent"`:                  {},
		`{"traceparent":"x"`:             {}, // a mapped column may hold anything
		`text with "content_type" in it`: {},
		"{\"traceparent\":\"\xff\"}":     {TraceParent: "\ufffd"},
		`{"traceparent":"` + parent + `","tracestate":7,"extra":1e9}`: {TraceParent: parent},
	} {
		if diff := cmp.Diff(want, ContextOf(json.RawMessage(metadata))); diff != "" {
			t.Errorf("%s: %s", metadata, diff)
		}
	}
}

func TestPlain(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", maxPlain+1)
	for _, test := range []struct{ all, plain Context }{
		{Context{}, Context{}},
		{Context{`a/b; c="d"`, "00-01", "a=1, b=2"}, Context{`a/b; c="d"`, "00-01", "a=1, b=2"}},
		{Context{"a/b\r\nX: 1", "00-01", "\x00"}, Context{"", "00-01", ""}},
		{Context{"a/b", "é", "a=1"}, Context{"a/b", "", ""}},
		{Context{long, long, "a=1"}, Context{}},
		{Context{long[1:], long[1:], long}, Context{long[1:], long[1:], ""}},
	} {
		if got := test.all.Plain(); got != test.plain {
			t.Errorf("%.80q: want %.80q, got %.80q", test.all, test.plain, got)
		}
	}
}

// TestContextOfCosts: metadata without the names, which is most of it, is not parsed.
func TestContextOfCosts(t *testing.T) {
	metadata := json.RawMessage(`{"user": "u-1", "source": "checkout", "tenant": "parent"}`)
	if n := testing.AllocsPerRun(100, func() { ContextOf(metadata) }); n != 0 {
		t.Errorf("%g allocations", n)
	}
}

func FuzzContextOf(f *testing.F) {
	f.Add([]byte(`{"traceparent":"a","tracestate":"b","content_type":"c"}`))
	f.Add([]byte(`{"traceparent":`))
	f.Add([]byte("\xff\"content_type\""))
	f.Fuzz(func(t *testing.T, metadata []byte) {
		if bytes.ContainsRune(metadata, '\\') {
			t.Skip("names are looked for as they are written")
		}
		got := ContextOf(metadata)
		var all map[string]any
		_ = json.Unmarshal(metadata, &all)
		want := Context{}
		want.ContentType, _ = all["content_type"].(string)
		if want.TraceParent, _ = all["traceparent"].(string); want.TraceParent != "" {
			want.TraceState, _ = all["tracestate"].(string)
		}
		if got != want {
			t.Errorf("want %+v, got %+v", want, got)
		}
	})
}
