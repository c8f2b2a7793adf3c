package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// Names has what the author of a configuration calls its values, by their paths, such as WorkerCount for delivery.lanes. A path that is
// not among them is named after the nearest one that it is in. There are none for a file, whose paths are the names.
type Names map[string]string

// Of returns what the author calls the value at a path.
func (n Names) Of(path string) string {
	for at := path; at != ""; at = parent(at) {
		if name, ok := n[at]; ok {
			return name + path[len(at):]
		}
	}
	return path
}

// Program is a configuration that a Go program makes, in place of a file. The program writes into Config, and says so by Written.
type Program struct {
	// Config is Default until the program changes it.
	Config *Config
	// Names are the program's. Messages use them in place of paths.
	Names Names

	loader *loader
}

// NewProgram returns a Program that has written nothing. Environ and options are as for LoadWith.
func NewProgram(environ []string, o Options) *Program {
	l := newLoader("", environ, o)
	l.literal, l.names = true, Names{}
	return &Program{Config: &l.config, Names: l.names, loader: l}
}

// Written says that the program has written the value at path, also if it has written the default.
func (p *Program) Written(path string) {
	p.loader.origins[path], p.loader.written[path] = origin{}, true
}

// Wrong adds mistakes that the program itself has found. Their paths may be those of values, or names.
func (p *Program) Wrong(mistakes ...Mistake) {
	p.loader.mistakes = append(p.loader.mistakes, mistakes...)
}

// AddSink adds a sink of a type. Settings have the keys that such a sink has in a file, but type. Name is what the program calls them.
// AddSink returns the path of the sink.
func (p *Program) AddSink(typ string, settings map[string]any, name string) (path string) {
	path = fmt.Sprintf("sinks[%d]", len(p.Config.Sinks))
	p.Names[path] = name
	s := defaultSink(typ)
	p.loader.decode(p.loader.node(path, settings), path, reflect.ValueOf(&s).Elem())
	p.Config.Sinks = append(p.Config.Sinks, s)
	return path
}

// Load completes and checks the configuration, as LoadWith does with that of a file.
func (p *Program) Load() (Config, []string, error) { return p.loader.finish() }

// node makes of a value what YAML would make of it. Bytes become a text. What YAML cannot hold is a mistake.
func (l *loader) node(path string, v any) *yaml.Node {
	if duration, ok := v.(time.Duration); ok {
		v = duration.String()
	}
	r := reflect.ValueOf(v)
	if r.Kind() == reflect.Slice && r.Type().Elem().Kind() == reflect.Uint8 {
		r = reflect.ValueOf(string(r.Bytes()))
	}
	null := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!null"}
	switch r.Kind() {
	case reflect.Invalid:
		return null
	case reflect.String:
		if !utf8.ValidString(r.String()) {
			l.mistake(path, "is not UTF-8")
			return null
		}
		return text(r.String())
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16,
		reflect.Uint32, reflect.Uint64, reflect.Float32, reflect.Float64:
		return text(fmt.Sprint(r.Interface()))
	case reflect.Slice:
		list := &yaml.Node{Kind: yaml.SequenceNode}
		for i := range r.Len() {
			list.Content = append(list.Content, l.node(fmt.Sprintf("%s[%d]", path, i), r.Index(i).Interface()))
		}
		return list
	case reflect.Map:
		if r.Type().Key().Kind() != reflect.String {
			break
		}
		m := &yaml.Node{Kind: yaml.MappingNode}
		for _, key := range slices.SortedFunc(r.Seq(), func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) }) {
			name := text(key.String())
			m.Content = append(m.Content, name, l.node(path+"."+keyName(name), r.MapIndex(key).Interface()))
		}
		return m
	}
	l.mistake(path, "is a %T; write a string, a number, a bool, a list or a map of such", v)
	return null
}

func text(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }
