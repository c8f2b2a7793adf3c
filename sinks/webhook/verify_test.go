package webhook

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// docsCode returns the block of code in this language that docs/sinks.md gives to receivers.
func docsCode(t *testing.T, language string) string {
	t.Helper()
	page, err := os.ReadFile("../../docs/sinks.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, found := strings.Cut(string(page), "\n### Verifying a signature\n")
	_, code, inThisLanguage := strings.Cut(section, "\n```"+language+"\n")
	code, _, closed := strings.Cut(code, "\n```\n")
	if !found || !inThisLanguage || !closed {
		t.Fatalf("docs/sinks.md has no code in %s under “Verifying a signature”", language)
	}
	return code + "\n"
}

// delivered is a request as the program of a receiver reads it, and what verify says of it.
type delivered struct {
	Name    string            `json:"name"`
	Secret  string            `json:"secret"`
	Headers map[string]string `json:"headers"`
	Body    []byte            `json:"body"`
	want    string            // accepts or refuses
}

const accepts, refuses = "accepts", "refuses"

// TestWhatReceiversWrite: the code of docs/sinks.md accepts what a sink sends, with every secret, and nothing else. Go is always
// there; Python and Node are tried if they are installed.
func TestWhatReceiversWrite(t *testing.T) {
	t.Parallel()
	cases := deliveredCases(t)
	input, err := json.Marshal(cases)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		language, command, file, before, after string
		arguments                              []string
	}{
		{"go", "go", "verify.go", "package main\n\n", "", []string{"run", "verify.go", "main.go"}},
		{"python", "python3", "verify.py", "", pythonMain, []string{"verify.py"}},
		{"js", "node", "verify.js", "", nodeMain, []string{"verify.js"}},
	} {
		t.Run(c.language, func(t *testing.T) {
			t.Parallel()
			code := docsCode(t, c.language)
			if _, err := exec.LookPath(c.command); err != nil {
				t.Skipf("%s is not installed", c.command)
			}
			dir := t.TempDir()
			for name, text := range map[string]string{c.file: c.before + code + c.after, "main.go": goMain} {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			program := exec.CommandContext(t.Context(), c.command, c.arguments...)
			program.Dir, program.Stdin = dir, bytes.NewReader(input)
			program.Env = append(program.Environ(), "GOFLAGS=", "GOWORK=off")
			var errors bytes.Buffer
			program.Stderr = &errors
			out, err := program.Output()
			if err != nil {
				t.Fatalf("%v: %s", err, errors.String())
			}
			var want strings.Builder
			for _, d := range cases {
				fmt.Fprintf(&want, "%s %s\n", d.Name, d.want)
			}
			if got := strings.ReplaceAll(string(out), "\r\n", "\n"); got != want.String() {
				t.Errorf("got\n%swant\n%s", got, want.String())
			}
		})
	}
}

// deliveredCases returns requests that a sink has sent, and changed ones.
func deliveredCases(t *testing.T) (cases []delivered) {
	t.Helper()
	const plain = "a plain sécret"
	rec := startReceiver(t, nil)
	batch := batchOf("a/1")
	batch[0].Event.Payload = []byte(`{"name": "Größe 👍"}`)
	if errs := deliver(t, newSink(t, Config{URL: rec.URL, Secrets: []string{standardSecret, nextSecret, plain}}), batch); errs != nil {
		t.Fatal(errs)
	}
	request := rec.requests()[0]
	add := func(name, secret, want string, change func(d *delivered)) {
		d := delivered{Name: name, Secret: secret, Headers: map[string]string{}, Body: bytes.Clone(request.body), want: want}
		for _, header := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
			d.Headers[header] = request.header.Get(header)
		}
		change(&d)
		cases = append(cases, d)
	}
	same := func(*delivered) {}
	add("first secret", standardSecret, accepts, same)
	add("second secret", nextSecret, accepts, same)
	add("plain secret", plain, accepts, same)
	add("another secret", "another", refuses, same)
	add("base64 without its prefix", strings.TrimPrefix(standardSecret, secretPrefix), refuses, same)
	add("another body", standardSecret, refuses, func(d *delivered) { d.Body[0] = ' ' })
	add("another id", standardSecret, refuses, func(d *delivered) { d.Headers["webhook-id"] = "b/1" })
	add("no signature that fits", standardSecret, refuses, func(d *delivered) { d.Headers["webhook-signature"] = "v1,AAAA v2,é" })
	add("no signature", standardSecret, refuses, func(d *delivered) { d.Headers["webhook-signature"] = "" })
	at := func(when time.Time) func(d *delivered) {
		return func(d *delivered) {
			timestamp := strconv.FormatInt(when.Unix(), 10)
			key, err := keyOf(standardSecret)
			if err != nil {
				t.Fatal(err)
			}
			d.Headers["webhook-timestamp"], d.Headers["webhook-signature"] = timestamp, newSlot([][]byte{key}).signature(d.Headers["webhook-id"], timestamp, d.Body)
		}
	}
	add("a minute old", standardSecret, accepts, at(time.Now().Add(-time.Minute)))
	add("an hour old", standardSecret, refuses, at(time.Now().Add(-time.Hour)))
	add("an hour early", standardSecret, refuses, at(time.Now().Add(time.Hour)))
	return cases
}

const goMain = `package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
)

func main() {
	var cases []struct {
		Name, Secret string
		Headers      map[string]string
		Body         []byte
	}
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	for _, c := range cases {
		h := http.Header{}
		for name, value := range c.Headers {
			h.Set(name, value)
		}
		if verify(c.Secret, h, c.Body) == nil {
			fmt.Println(c.Name, "accepts")
		} else {
			fmt.Println(c.Name, "refuses")
		}
	}
}
`

const pythonMain = `
import json, sys

for c in json.load(sys.stdin):
    try:
        verify(c["secret"], c["headers"], base64.b64decode(c["body"]))
        print(c["name"], "accepts")
    except ValueError:
        print(c["name"], "refuses")
`

const nodeMain = `
for (const c of JSON.parse(require("node:fs").readFileSync(0))) {
  let said = "accepts";
  try {
    verify(c.secret, c.headers, Buffer.from(c.body, "base64"));
  } catch (e) {
    said = "refuses";
  }
  console.log(c.name, said);
}
`
