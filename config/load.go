package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/pyairtable-compose/outbox-cdc/internal/exitcode"
)

// Load makes a Config of the YAML file at path, or of the environment alone if path is empty. environ has the form of os.Environ.
// A variable of the environment that begins with OUTBOX_ prevails over the file, and both prevail over the defaults. DATABASE_URL
// and SERVICE_NAME count only if the file has no source.dsn and no name. Warnings are about what works, but will surprise. The error is an *Error with every mistake; the Config must not be used then.
//
// Some mistakes only the packages of the sinks can find, such as a missing file of a certificate. LoadWith finds them if
// Options.CheckSink is service.CheckSink. Otherwise service.Build finds them, and does not know their lines.
func Load(path string, environ []string) (Config, []string, error) {
	return LoadWith(path, environ, Options{})
}

// Options say what a command does not need of a configuration, and what it checks in addition.
type Options struct {
	// DSN is used if neither file nor environment has source.dsn. DSNPlace says where the user has written it, such as --dsn.
	DSN, DSNPlace string
	// NoDSN leaves out source.dsn and source.replication_dsn, even if they are written.
	NoDSN bool
	// NoSinks accepts a configuration without sinks.
	NoSinks bool
	// SinksOptional turns mistakes in sinks and routes into warnings. The Config then has neither.
	SinksOptional bool
	// OnlyHTTP is for a command that asks an instance which runs already: of the mistakes, only those of http count, and those of
	// the file as a whole. Nothing else of the Config may be used.
	OnlyHTTP bool
	// InProcess allows sinks of type SinkInProcess.
	InProcess bool
	// NoVariables says that environ has no variable OUTBOX_…, so that no message recommends to set one.
	NoVariables bool
	// CheckSink returns what the sink's own package finds wrong with c.Sinks[i]. Their paths are keys of the sink, such as
	// tls.ca_file. It is also called for sinks in which this package has found mistakes, so that all mistakes are reported
	// at once. It may be nil.
	CheckSink func(c Config, i int) []Mistake
}

// LoadWith is Load with options.
func LoadWith(path string, environ []string, o Options) (Config, []string, error) {
	d, err := ReadDocument(path, environ, o)
	if err != nil {
		return Config{}, nil, err
	}
	return d.Load()
}

// Parse is LoadWith for the content of a file. Mistakes call it by the name file.
func Parse(file string, data []byte, environ []string, o Options) (Config, []string, error) {
	l := newLoader(file, environ, o)
	l.decodeFile(data)
	return l.finish()
}

func newLoader(file string, environ []string, o Options) *loader {
	return &loader{
		file: file, env: environment(environ), options: o, used: map[string]bool{}, origins: map[string]origin{}, written: map[string]bool{},
		config: Default(),
	}
}

// finish adds the environment to what was written, completes and checks the configuration.
func (l *loader) finish() (Config, []string, error) {
	o := l.options
	l.applyEnvironment()
	l.applyDatabaseURL()
	l.applyOpenTelemetry()
	if l.config.Source.DSN == "" && o.DSN != "" {
		l.config.Source.DSN = DSN(Clean(o.DSN))
		l.origins["source.dsn"] = origin{variable: o.DSNPlace}
	}
	l.complete()
	v := validator{config: &l.config, options: o, names: l.names, isType: l.isType, mistake: l.invalid, warn: l.warn, whence: l.whence}
	v.run()
	if o.CheckSink != nil {
		l.checkSinks()
	}
	if o.SinksOptional {
		l.forgiveSinks()
	}
	if o.OnlyHTTP {
		l.mistakes = slices.DeleteFunc(l.mistakes, func(m Mistake) bool {
			first, _, _ := strings.Cut(m.Path, ".")
			return first != "" && first != "http"
		})
	}
	if len(l.mistakes) > 0 {
		slices.SortStableFunc(l.mistakes, compareMistakes)
		for i, m := range l.mistakes {
			l.mistakes[i].Path = l.names.Of(m.Path)
		}
		return Config{}, l.warnings, &Error{Mistakes: l.mistakes}
	}
	for _, s := range l.config.Sinks {
		if s.Abandoned {
			l.config.Abandoned = append(l.config.Abandoned, s.Name)
		}
	}
	l.config.Sinks = slices.DeleteFunc(l.config.Sinks, func(s Sink) bool { return s.Abandoned })
	return l.config, l.warnings, nil
}

// forgiveSinks turns the mistakes of sinks and routes into warnings. Where there are some, the Config has no sinks and no routes.
func (l *loader) forgiveSinks() {
	ofSinks := func(m Mistake) bool {
		first, _, _ := strings.Cut(indexPattern.ReplaceAllString(m.Path, ""), ".")
		return first == "sinks" || first == "routes" || slices.ContainsFunc(sinkVariables, func(v sinkVariable) bool { return v.name == m.Path })
	}
	slices.SortStableFunc(l.mistakes, compareMistakes)
	for _, m := range l.mistakes {
		if ofSinks(m) {
			l.warnings = append(l.warnings, m.String())
			l.config.Sinks, l.config.Routes = nil, nil
		}
	}
	l.mistakes = slices.DeleteFunc(l.mistakes, ofSinks)
}

// loader gathers a Config, where each of its values came from, and what is wrong with them.
type loader struct {
	file     string
	env      map[string]string
	options  Options
	used     map[string]bool // variables that the file refers to
	literal  bool            // ${VAR} means nothing
	names    Names           // in messages
	config   Config
	origins  map[string]origin // by path
	written  map[string]bool   // paths of single values; a key without a value leaves the default, and is not among them
	mistakes []Mistake
	warnings []string
}

// origin is where a value was written: a line of the file, or a variable.
type origin struct {
	line     int
	variable string
}

// place returns where the value at path was written, such as outbox.yaml:3, or the name of a variable. It is empty if the value was
// not written.
func (l *loader) place(path string) string {
	o, ok := l.origins[path]
	switch {
	case !ok:
		return ""
	case o.variable != "":
		return o.variable
	case l.names != nil: // a Go program has written it
		return l.names.Of(path)
	}
	return fmt.Sprintf("%s:%d", l.file, o.line)
}

// whence returns the value at path with the place where it was written, or that it is the default.
func (l *loader) whence(path, value string) string {
	switch place := l.place(path); {
	case !l.written[path]:
		return value + " by default"
	case l.names != nil && l.origins[path].variable == "":
		return value // its name stands beside it
	default:
		return value + ", " + place
	}
}

func (l *loader) lookup(name string) (string, bool) {
	l.used[name] = true
	value, ok := l.env[name]
	return value, ok
}

func (l *loader) warn(format string, args ...any) {
	l.warnings = append(l.warnings, fmt.Sprintf(format, args...))
}

// mistake reports a mistake at the place where path was written. If path was not written, the place is that of its nearest parent
// that was.
func (l *loader) mistake(path, format string, args ...any) {
	m := Mistake{Path: path, Text: fmt.Sprintf(format, args...)}
	for at := path; ; at = parent(at) {
		if o, ok := l.origins[at]; ok {
			m.Line, m.Variable = o.line, o.variable
			break
		}
		if at == "" {
			break
		}
	}
	if m.Variable == "" {
		m.File = l.file
	}
	l.mistakes = append(l.mistakes, m)
}

// invalid reports a mistake of validation, unless a mistake of the same value, or of what it is in, was reported already.
func (l *loader) invalid(path, format string, args ...any) {
	if !isReported(l.mistakes, path) {
		l.mistake(path, format, args...)
	}
}

// isReported reports whether one of the mistakes is of this value, or of what it is in.
func isReported(mistakes []Mistake, path string) bool {
	for at := path; ; at = parent(at) {
		if slices.ContainsFunc(mistakes, func(m Mistake) bool { return m.Path == at }) {
			return true
		}
		if at == "" {
			return false
		}
	}
}

// checkSinks calls Options.CheckSink for each sink. A mistake of a sink as a whole counts only if no mistake of that sink was
// found before, because it may be the same mistake in other words. One value may hold several mistakes: each is reported.
func (l *loader) checkSinks() {
	for i, s := range l.config.Sinks {
		if !l.isType(s.Type) || s.Abandoned {
			continue
		}
		path := fmt.Sprintf("sinks[%d]", i)
		sound := !slices.ContainsFunc(l.mistakes, func(m Mistake) bool { return strings.HasPrefix(m.Path, path) })
		before := len(l.mistakes)
		for _, m := range l.options.CheckSink(l.config, i) {
			at := path
			if m.Path != "" {
				at += "." + m.Path
			} else if !sound {
				continue
			}
			if !isReported(l.mistakes[:before], at) {
				l.mistake(at, "%s", m.Text)
			}
		}
	}
}

// isDSN reports whether Options.NoDSN leaves out this key.
func isDSN(path string) bool { return path == "source.dsn" || path == "source.replication_dsn" }

// parent returns the path of what a path is in: for a.b[1].c this is a.b[1], for that a.b, for that a, and for that "".
func parent(path string) string {
	return path[:max(strings.LastIndexAny(path, ".["), 0)]
}

func (l *loader) decodeFile(data []byte) {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	err := dec.Decode(&doc)
	if errors.Is(err, io.EOF) {
		return // the file has only comments; the environment may have everything
	}
	if err == nil && !errors.Is(dec.Decode(&more), io.EOF) {
		l.origins[""] = origin{line: max(more.Line, doc.Line)}
		l.mistake("", "holds more than one YAML document")
		return
	}
	if err != nil {
		line, cause := syntaxMistake(data, err)
		l.origins[""] = origin{line: line}
		l.mistake("", "is no YAML: %s", cause)
		return
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		l.origins[""] = origin{line: root.Line}
	}
	l.decode(root, "", reflect.ValueOf(&l.config).Elem())
}

// complete fills in what follows from other values.
func (l *loader) complete() {
	c := &l.config
	if c.Name == "" {
		if c.Name = l.env[serviceName]; c.Name != "" {
			l.origins["name"] = origin{variable: serviceName}
		}
	}
	if c.Name == "" {
		c.Name = c.Source.Slot
	}
	c.Source.DSNPlace = l.place("source.dsn")
	c.Source.ReplicationDSNPlace = l.place("source.replication_dsn")
	if c.Source.ReplicationDSN == "" {
		c.Source.ReplicationDSN, c.Source.ReplicationDSNPlace = c.Source.DSN, c.Source.DSNPlace
	}
	if strings.EqualFold(c.HTTP.Listen, listenOff) {
		c.HTTP.Listen = ""
	}
	if c.Source.LedgerSchema == "" {
		c.Source.LedgerSchema, _, _ = strings.Cut(c.Source.Table, ".")
	}
	l.completeRetention()
	l.retryWebhooks()
	for i := range c.Sinks { // the scheme of the URL may ask for TLS too
		s := &c.Sinks[i]
		switch {
		case s.Redis != nil:
			s.Redis.TLS.Enabled = s.Redis.TLS.Enabled || strings.HasPrefix(string(s.Redis.URL), "rediss:")
		case s.Webhook != nil:
			s.Webhook.TLS.Enabled = s.Webhook.TLS.Enabled || strings.HasPrefix(string(s.Webhook.URL), "https:")
		case s.EventBus != nil:
			for _, u := range s.EventBus.URL.list() {
				s.EventBus.TLS.Enabled = s.EventBus.TLS.Enabled || strings.HasPrefix(string(u), "tls:")
			}
		}
	}
}

// retryWebhooks gives webhooks their own default of max_retries, which anything that was written beats. Members of a composite that is
// one sink are left out: the composite's number counts.
func (l *loader) retryWebhooks() {
	c := &l.config
	if l.written["delivery.max_retries"] {
		return
	}
	for i := range c.Sinks {
		s := &c.Sinks[i]
		isMember := slices.ContainsFunc(c.Sinks, func(of Sink) bool {
			return of.Composite != nil && of.Composite.Strategy == StrategyAny && slices.Contains(of.Composite.Members, s.Name)
		})
		if s.Webhook != nil && s.MaxRetries == nil && !isMember {
			s.MaxRetries = new(webhookRetries)
		}
	}
}

// Mistake is one thing that is wrong with a configuration.
type Mistake struct {
	// File and Line, or Variable, say where the wrong value was written. Line 0 means that it was not written.
	File     string
	Line     int
	Variable string
	// Path is the key, such as sinks[1].brokers. It is empty for the file as a whole. For a variable that sets no key it is the
	// variable's name.
	Path string
	Text string
}

// String gives "outbox.yaml:12: sinks[1].brokers: missing".
func (m Mistake) String() string {
	where := m.File
	switch {
	case m.Variable != "":
		where = m.Variable
	case m.Line > 0:
		where += ":" + strconv.Itoa(m.Line)
	}
	parts := []string{where, m.Path, m.Text}
	return strings.Join(slices.DeleteFunc(slices.Compact(parts), func(s string) bool { return s == "" }), ": ")
}

// compareMistakes orders mistakes by line. Mistakes without a line come last.
func compareMistakes(a, b Mistake) int {
	switch {
	case a.Line == b.Line:
		return 0
	case a.Line == 0 || b.Line != 0 && a.Line > b.Line:
		return 1
	}
	return -1
}

// Error says that a configuration cannot be used. It has every mistake that was found in it.
type Error struct{ Mistakes []Mistake }

// Error returns a line for each mistake.
func (e *Error) Error() string {
	lines := make([]string, len(e.Mistakes))
	for i, m := range e.Mistakes {
		lines[i] = m.String()
	}
	return strings.Join(lines, "\n")
}

// ExitCode is exitcode.Config.
func (e *Error) ExitCode() int { return int(exitcode.Config) }

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
