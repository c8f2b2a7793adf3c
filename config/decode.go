package config

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// notBuilt are the keys of the design that have no code yet. They are refused by that name: a file that asks for
// a token and gets none would be worse than an error. Indexes are written as [].
var notBuilt = []string{
	"http.token",
	"sinks[].exactly_once",
}

var sinkTypes = []string{SinkKafka, SinkRedis, SinkWebhook, SinkEventBus, SinkComposite, SinkStdout}

// isType says whether a sink may be of this type.
func (l *loader) isType(typ string) bool {
	return slices.Contains(sinkTypes, typ) || typ == SinkInProcess && l.options.InProcess
}

var indexPattern = regexp.MustCompile(`\[\d+\]`)

// decode writes a node into v and reports every mistake on the way. Its recursion ends with the types of Config, so
// neither deep files nor aliases that hold themselves do any harm.
func (l *loader) decode(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if isNull(n) {
		return // a key without a value, such as a section whose keys are commented out, leaves the default
	}
	switch {
	case v.Kind() == reflect.Struct:
		l.decodeStruct(n, path, v)
	case v.Type() == reflect.TypeFor[[]Sink]():
		l.decodeSinks(n, path, v)
	case v.Kind() == reflect.Slice && n.Kind == yaml.SequenceNode:
		if len(n.Content) == 0 { // no list is none
			v.SetZero()
			return
		}
		list := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
		for i, item := range n.Content {
			sub := fmt.Sprintf("%s[%d]", path, i)
			l.origins[sub] = origin{line: item.Line}
			l.decode(item, sub, list.Index(i))
		}
		v.Set(list)
	case v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Struct:
		l.mistake(path, "must be a list, not %s", kindName(n))
	case v.Kind() == reflect.Map:
		l.decodeMap(n, path, v)
	case n.Kind != yaml.ScalarNode:
		l.mistake(path, "must be one value, not %s", kindName(n))
	default:
		l.decodeScalar(n, path, v)
	}
}

func (l *loader) decodeStruct(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		l.mistake(path, "must hold keys, not %s", kindName(n))
		return
	}
	names, fields := fieldsOf(v)
	seen := map[string]bool{}
	unknown := "unknown key; known here: " + strings.Join(names, ", ")
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		name := keyName(key)
		sub := strings.TrimPrefix(path+"."+name, ".")
		field, known := fields[name]
		if seen[key.Value] {
			l.mistakes = append(l.mistakes, Mistake{File: l.file, Line: key.Line, Path: sub, Text: "stands here for the second time"})
			continue
		}
		seen[key.Value] = true
		l.origins[sub] = origin{line: key.Line}
		switch {
		case l.options.NoDSN && isDSN(sub):
		case known:
			l.decode(value, sub, field)
		case slices.Contains(notBuilt, indexPattern.ReplaceAllString(sub, "[]")):
			l.mistake(sub, "is not built yet; remove it")
		case strings.Contains(key.Value, ":"):
			l.mistake(sub, "is no key; put a space behind its colon")
		default:
			l.mistake(sub, "%s", unknown)
		}
	}
}

var beginOfName = regexp.MustCompile(`^[A-Za-z0-9_<-]{0,40}`)

// keyName is a key as a path tells it. Of one that is no name only the beginning: with a colon that lacks its space it
// holds the value as well.
func keyName(key *yaml.Node) string {
	begin := beginOfName.FindString(key.Value)
	switch {
	case key.Kind != yaml.ScalarNode || begin != key.Value:
		return strconv.Quote(begin + "…")
	case !variableName.MatchString(begin):
		return strconv.Quote(begin)
	}
	return begin
}

// decodeMap reads names of the user's own with their values.
func (l *loader) decodeMap(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.MappingNode {
		l.mistake(path, "must hold keys, not %s", kindName(n))
		return
	}
	if len(n.Content) == 0 {
		v.SetZero()
		return
	}
	m := reflect.MakeMap(v.Type())
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		sub := path + "." + keyName(key)
		l.origins[sub] = origin{line: key.Line}
		name := reflect.ValueOf(key.Value)
		if key.Kind != yaml.ScalarNode || m.MapIndex(name).IsValid() {
			l.mistake(sub, "stands here for the second time, or is no name")
			continue
		}
		item := reflect.New(v.Type().Elem()).Elem()
		l.decode(value, sub, item)
		m.SetMapIndex(name, item)
	}
	v.Set(m)
}

// fieldsOf gives the fields of a struct by the names of their keys, those of a set inline pointer among them.
func fieldsOf(v reflect.Value) (names []string, fields map[string]reflect.Value) {
	fields = map[string]reflect.Value{}
	for i := range v.NumField() {
		name, option, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ",")
		if option == "inline" {
			if f := v.Field(i); !f.IsNil() {
				inner, more := fieldsOf(f.Elem())
				for _, name := range inner {
					names, fields[name] = append(names, name), more[name]
				}
			}
			continue
		}
		if name != "-" { // no key
			names, fields[name] = append(names, name), v.Field(i)
		}
	}
	return names, fields
}

func (l *loader) decodeSinks(n *yaml.Node, path string, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		l.mistake(path, "must be a list of sinks, not %s", kindName(n))
		return
	}
	list := make([]Sink, len(n.Content))
	for i, item := range n.Content {
		sub := fmt.Sprintf("%s[%d]", path, i)
		l.origins[sub] = origin{line: item.Line}
		if item.Kind == yaml.AliasNode {
			item = item.Alias
		}
		// The type says which keys a sink has, so without a good one the others cannot be judged.
		typ, line, err := l.sinkType(item)
		if line > 0 {
			l.origins[sub+".type"] = origin{line: line}
		}
		switch {
		case err != nil:
			l.mistake(sub+".type", "%v", err)
		case item.Kind != yaml.MappingNode:
			l.mistake(sub, "must hold keys, not %s", kindName(item))
		case typ == "" && isAbandoned(item): // of which nothing but its name matters
			l.decode(item, sub, reflect.ValueOf(&list[i]).Elem())
		case l.isType(typ):
			list[i] = defaultSink(typ)
			l.decode(item, sub, reflect.ValueOf(&list[i]).Elem())
		default:
			l.mistake(sub+".type", "%s", wrongSinkType(typ))
		}
		if list[i].Type == "" { // routes, composites and other sinks may use the name
			list[i].Name = l.sinkName(item, sub)
		}
	}
	v.Set(reflect.ValueOf(list))
}

// isAbandoned says so of a sink before it is decoded.
func isAbandoned(sink *yaml.Node) bool {
	for i := 0; i+1 < len(sink.Content); i += 2 {
		if sink.Content[i].Value == "abandoned" {
			abandoned, _ := strconv.ParseBool(sink.Content[i+1].Value) // what is no bool, decode refuses
			return abandoned
		}
	}
	return false
}

func wrongSinkType(typ string) string {
	known := strings.Join(sinkTypes, ", ")
	if typ == "" {
		return "missing; write one of " + known
	}
	return fmt.Sprintf("%q is no type of sink; write one of %s", typ, known)
}

// sinkType finds the type of a sink, and its line, before the sink is decoded.
func (l *loader) sinkType(sink *yaml.Node) (typ string, line int, err error) {
	if sink.Kind != yaml.MappingNode {
		return "", 0, nil
	}
	for i := 0; i+1 < len(sink.Content); i += 2 {
		if key, value := sink.Content[i], sink.Content[i+1]; key.Value == "type" && value.Kind == yaml.ScalarNode && !isNull(value) {
			typ, err = expand(value.Value, l.lookup)
			return typ, key.Line, err
		}
	}
	return "", 0, nil
}

// sinkName finds the name of a sink that cannot be decoded. It is empty if the sink has none.
func (l *loader) sinkName(sink *yaml.Node, path string) string {
	for i := 0; sink.Kind == yaml.MappingNode && i+1 < len(sink.Content); i += 2 {
		if key, value := sink.Content[i], sink.Content[i+1]; key.Value == "name" && value.Kind == yaml.ScalarNode && !isNull(value) {
			l.origins[path+".name"] = origin{line: key.Line}
			name, err := expand(value.Value, l.lookup)
			if err != nil {
				return ""
			}
			return name
		}
	}
	return ""
}

func (l *loader) decodeScalar(n *yaml.Node, path string, v reflect.Value) {
	switch n.ShortTag() {
	case "!!str", "!!int", "!!float", "!!bool", "!!timestamp", "!!merge":
	default:
		l.mistake(path, "has a tag, which means nothing here; a value that begins with ! needs quotes")
		return
	}
	text, err := n.Value, error(nil)
	if !l.literal {
		text, err = expand(n.Value, l.lookup)
	}
	if err != nil {
		for line := range strings.Lines(err.Error()) {
			l.mistake(path, "%s", strings.TrimSuffix(line, "\n"))
		}
		return
	}
	if text == "" && n.Value != "" {
		return // ${VAR:-} leaves the default, as a key without a value does
	}
	l.written[path] = true
	if err := setScalar(v, text); err != nil {
		// The text as written, never what a reference stands for: that may be a secret.
		l.mistake(path, "%q %v", n.Value, err)
	}
}

// setScalar parses text as the type of v asks.
func setScalar(v reflect.Value, text string) error {
	switch v.Interface().(type) {
	case *int, *float64, *time.Duration:
		n := reflect.New(v.Type().Elem())
		v.Set(n)
		return setScalar(n.Elem(), text)
	case time.Duration:
		d, err := parseDuration(text)
		v.SetInt(int64(d))
		return err
	case Age:
		a, err := ParseAge(text)
		v.SetString(string(a))
		return err
	case Bytes:
		b, err := parseBytes(text)
		v.SetInt(int64(b))
		return err
	}
	switch v.Kind() {
	case reflect.String:
		if t := v.Type(); t == reflect.TypeFor[DSN]() || t == reflect.TypeFor[URL]() {
			text = Clean(text)
		}
		v.SetString(text)
	case reflect.Int:
		n, err := strconv.Atoi(text)
		if err != nil {
			return errors.New("is no whole number")
		}
		v.SetInt(int64(n))
	case reflect.Float64:
		f, err := strconv.ParseFloat(text, 64)
		if err != nil || math.IsNaN(f) {
			return errors.New("is no number")
		}
		v.SetFloat(f)
	case reflect.Bool:
		b, err := strconv.ParseBool(text)
		if err != nil {
			return errors.New("is neither true nor false")
		}
		v.SetBool(b)
	case reflect.Slice:
		// One value is a list with commas, so that a variable can hold one; but a secret may hold a comma.
		texts := []string{text}
		if v.Type() != reflect.TypeFor[[]Secret]() {
			texts = strings.Split(text, ",")
		}
		list := reflect.MakeSlice(v.Type(), len(texts), len(texts))
		for i, text := range texts {
			list.Index(i).SetString(strings.TrimSpace(text))
		}
		v.Set(list)
	default:
		panic(fmt.Sprintf("config: no scalar of type %s", v.Type()))
	}
	return nil
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "keys"
	case yaml.SequenceNode:
		return "a list"
	default:
		return "one value"
	}
}
