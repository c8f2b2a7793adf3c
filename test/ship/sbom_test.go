package ship

import (
	"debug/buildinfo"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
)

// licenceWords are words of each licence that is linked, and of no other one.
var licenceWords = map[string]string{
	"Apache-2.0":   "Apache License",
	"BSD-2-Clause": "Redistribution and use in source and binary forms",
	"BSD-3-Clause": "contributors may be used to endorse or promote products",
	"ISC":          "Permission to use, copy, modify, and/or distribute this software",
	"MIT":          "Permission is hereby granted, free of charge",
}

// noticed reads the licences of each module from the texts that ship.
func noticed(t *testing.T) map[string][]string {
	t.Helper()
	found := map[string]map[string]bool{}
	for section := range strings.SplitSeq(readFile(t, "bin/shipped/NOTICES.txt"), "\n"+strings.Repeat("=", 100)+"\n") {
		title, text, _ := strings.Cut(section, "\n")
		module := strings.Fields(title)[0]
		if strings.HasPrefix(title, "the Go standard library ") {
			module = "std"
		}
		if found[module] == nil {
			found[module] = map[string]bool{}
		}
		text = strings.Join(strings.Fields(text), " ")
		for id, words := range licenceWords {
			if strings.Contains(text, words) {
				found[module][id] = true
			}
		}
	}
	all := map[string][]string{}
	for module, ids := range found {
		if ids["BSD-3-Clause"] {
			delete(ids, "BSD-2-Clause") // it has the words of the other one, and more
		}
		all[module] = slices.Sorted(maps.Keys(ids))
	}
	return all
}

// TestSBOM: the components are the modules that are linked into the binary of dist, with the licences whose texts ship.
func TestSBOM(t *testing.T) {
	binary, err := buildinfo.ReadFile(artifact(t, "outbox-cdc_linux_amd64*/outbox-cdc"))
	if err != nil {
		t.Fatal(err)
	}
	linked := map[string]string{"std": binary.GoVersion}
	for _, m := range binary.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		linked[m.Path] = m.Version
	}

	type component struct {
		Name, Version, PURL string
		Evidence            struct {
			Licenses []struct{ License struct{ ID string } }
		}
	}
	var sbom struct {
		BOMFormat, SpecVersion string
		Metadata               struct {
			Component  component
			Tools      []map[string]any
			Properties []struct{ Name string }
		}
		Components []component
	}
	text := readFile(t, "bin/shipped/outbox-cdc.cdx.json")
	if err := json.Unmarshal([]byte(text), &sbom); err != nil {
		t.Fatal(err)
	}
	const module = "github.com/pyairtable-compose/outbox-cdc"
	main := sbom.Metadata.Component
	if sbom.BOMFormat != "CycloneDX" || main.Name != module || main.Version != "v"+distVersion(t) || !strings.HasPrefix(main.PURL, "pkg:golang/"+module+"@"+main.Version+"?") {
		t.Errorf("%s of %+v, and dist has %s", sbom.BOMFormat, main, distVersion(t))
	}
	texts := noticed(t)
	for _, c := range sbom.Components {
		want := linked[c.Name]
		if want != c.Version || !strings.HasPrefix(c.PURL, "pkg:golang/"+c.Name+"@"+c.Version) {
			t.Errorf("%s: version %q (%s), and %q is linked", c.Name, c.Version, c.PURL, want)
		}
		delete(linked, c.Name)
		var ids []string
		for _, l := range c.Evidence.Licenses {
			ids = append(ids, l.License.ID)
		}
		slices.Sort(ids)
		if len(ids) == 0 || !slices.Equal(ids, texts[c.Name]) {
			t.Errorf("%s: licences %q, and its files have %q: tools/sbom says what cyclonedx-gomod finds wrongly", c.Name, ids, texts[c.Name])
		}
	}
	if len(linked) > 0 {
		t.Errorf("the SBOM lacks %v", linked)
	}
	// What tells of the machine of a build would differ in the next one.
	if len(sbom.Metadata.Tools) != 1 || sbom.Metadata.Tools[0]["hashes"] != nil || strings.Contains(text, "serialNumber") || strings.Contains(text, "cdx:gomod:binary:") {
		t.Errorf("metadata: %+v", sbom.Metadata)
	}
}
