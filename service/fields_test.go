package service

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pyairtable-compose/outbox-cdc/config"
)

// wrongSetting is a setting that no sink takes, and the key for which the mistake has to be.
type wrongSetting struct {
	value any
	key   string // of the mistake, where it is not that of the setting
}

var (
	wrongTLS = map[string]wrongSetting{
		"tls.enabled":              {value: "maybe"},
		"tls.insecure_skip_verify": {value: "maybe"},
		"tls.ca_file":              {value: "/nowhere"},
		"tls.cert_file":            {value: "/nowhere"},
	}
	wrongInAll = map[string]wrongSetting{
		"name": {value: "a b"}, "topic": {value: "{nothing}"}, "key": {value: "{nothing}"}, "max_retries": {value: -1}, "backlog": {value: "some"},
		"sla.within": {value: "2h"}, "sla.objective": {value: 100}, "abandoned": {value: "maybe"}, "unknown": {value: 1},
	}
	wrongSettings = map[string]map[string]wrongSetting{
		config.SinkKafka: {
			"brokers": {value: []string{}}, "brokers ": {[]string{"a:1", "nowhere"}, "brokers[1]"}, "compression": {value: "x"}, "timestamp": {value: "x"},
			"format": {[]string{"debezium", "x"}, "format[1]"}, "source": {value: "a b"}, "content_type": {value: "x"}, "placement": {value: "nothing:header"},
			"header_encoding": {value: "x"}, "headers_from_metadata": {[]string{"a", ""}, "headers_from_metadata[1]"}, "tombstone_on_empty_payload": {value: "maybe"},
			"lsn_header": {value: "maybe"}, "max_message_bytes": {value: 1},
			"sasl.mechanism": {value: "x"}, "sasl.username": {value: ""}, "sasl.password": {value: ""},
		},
		config.SinkRedis: {
			"url": {value: "http://localhost"}, "url ": {"redis://localhost?x=1", "url"}, "addresses": {[]string{"a:1", "nowhere"}, "addresses[1]"},
			"master": {"m", "addresses"}, "username": {"u", "password"}, "client_name": {value: "a b"}, "max_len": {value: -1}, "min_id_age": {value: "-1s"},
			"max_message_bytes": {value: 1}, "content_type": {value: "x"},
		},
		config.SinkWebhook: {
			"url": {value: "https://u:p@partner.example"}, "url ": {"ftp://partner.example", "url"}, "secret": {[]string{"a", "whsec_!"}, "secret[1]"},
			"secret ": {[]string{"a", ""}, "secret[1]"}, "headers": {value: map[string]string{"a b": "c"}}, "headers ": {map[string]string{"Host": "c"}, "headers"},
			"body": {value: "x"}, "source": {value: "a b"}, "content_type": {value: "x"}, "allow_hosts": {[]string{"a", "*.b"}, "allow_hosts[1]"},
			"connections": {value: 0}, "rate": {value: -1}, "max_retry_after": {value: "1ms"},
		},
		config.SinkEventBus: {
			"url": {value: "http://localhost"}, "credentials_file": {value: "/nowhere"}, "nkey_file": {value: "/nowhere"}, "inbox_prefix": {value: "a.>"},
			"source": {value: "a b"}, "content_type": {value: "x"},
		},
	}
	// takenAsTheyAre are the keys whose values are never wrong by themselves.
	takenAsTheyAre = map[string][]string{
		config.SinkKafka: {"client_id"}, config.SinkRedis: {"password"}, config.SinkWebhook: nil, config.SinkEventBus: {"client_name", "stream"},
	}
	soundSettings = map[string]map[string]any{
		config.SinkKafka: {"brokers": []string{"localhost:9092"}}, config.SinkRedis: {"url": "redis://localhost"},
		config.SinkWebhook: {"url": "https://partner.example/", "secret": "s"}, config.SinkEventBus: {"url": "nats://localhost"},
	}
)

// settingsWith returns sound settings of a sink with one wrong one, and what the setting needs beside it.
func settingsWith(typ, key string, value any) map[string]any {
	settings := maps.Clone(soundSettings[typ])
	section, inner, nested := strings.Cut(key, ".")
	if !nested {
		settings[key] = value
		return settings
	}
	beside := map[string]any{}
	switch section {
	case "sasl":
		beside = map[string]any{"mechanism": "plain", "username": "u", "password": "p"}
	case "tls":
		beside = map[string]any{"enabled": true}
		if inner == "cert_file" {
			beside["key_file"] = "/nowhere"
		}
	}
	beside[inner] = value
	settings[section] = beside
	return settings
}

// keysOf returns the keys of a struct of package config, those of structs within as section.key.
func keysOf(t reflect.Type) (keys []string) {
	for f := range t.Fields() {
		key, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
		if f.Type.Kind() != reflect.Struct {
			keys = append(keys, key)
			continue
		}
		for _, inner := range keysOf(f.Type) {
			keys = append(keys, key+"."+inner)
		}
	}
	return keys
}

// For each key of each sink, a wrong value is one mistake, with exactly the path of the key: in a file with its line, and in a service that
// embeds the connector with the name of the field.
func TestEachWrongSettingIsNamed(t *testing.T) {
	t.Parallel()
	for typ, of := range map[string]reflect.Type{
		config.SinkKafka: reflect.TypeFor[config.Kafka](), config.SinkRedis: reflect.TypeFor[config.Redis](),
		config.SinkWebhook: reflect.TypeFor[config.Webhook](), config.SinkEventBus: reflect.TypeFor[config.EventBus](),
	} {
		all := maps.Clone(wrongInAll)
		maps.Copy(all, wrongTLS)
		maps.Copy(all, wrongSettings[typ])
		for _, key := range keysOf(of) {
			if _, tried := all[key]; !tried && key != "tls.key_file" && !slices.Contains(takenAsTheyAre[typ], key) {
				t.Errorf("%s: nobody has tried a wrong %s", typ, key)
			}
		}
		for key, wrong := range all {
			key = strings.TrimSpace(key) // a second value for the same key
			want := wrong.key
			if want == "" {
				want = key
			}
			settings := settingsWith(typ, key, wrong.value)
			wantOneMistake(t, typ, settings, want)
		}
	}
}

func wantOneMistake(t *testing.T, typ string, settings map[string]any, key string) {
	t.Helper()
	_, err := (&OutboxServiceConfig{DatabaseURL: testDSN, PublisherType: typ, PublisherConfig: settings}).load(environment{explicit: true})
	wantMistake(t, err, config.Mistake{Path: "PublisherConfig." + key})

	text := "source: {dsn: " + testDSN + "}\nsinks:\n- type: " + typ + "\n"
	line, keyLine := 3, 3 // a key that is not written has the line of its sink
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		value, err := json.Marshal(settings[name]) // is YAML as well
		if err != nil {
			t.Fatal(err)
		}
		text += fmt.Sprintf("  %s: %s\n", name, value)
		if line++; name == key || strings.HasPrefix(key, name+".") || strings.HasPrefix(key, name+"[") {
			keyLine = line
		}
	}
	_, _, err = config.Parse("f.yml", []byte(text), nil, config.Options{CheckSink: CheckSink})
	wantMistake(t, err, config.Mistake{File: "f.yml", Line: keyLine, Path: "sinks[0]." + key})
}

// wantMistake fails the test unless err is this mistake alone, with some text.
func wantMistake(t *testing.T, err error, want config.Mistake) {
	t.Helper()
	found, ok := errors.AsType[*config.Error](err)
	if !ok || len(found.Mistakes) != 1 {
		t.Errorf("want one mistake at %s, got %v", want, err)
		return
	}
	got := found.Mistakes[0]
	if got.Text == "" {
		t.Errorf("%s: says nothing", got)
	}
	if want.Text = got.Text; got != want {
		t.Errorf("want %s, got %s", want, got)
	}
}
