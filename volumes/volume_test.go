package volumes

import (
	"path"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	volume := func(s string) (Volume, error) { return ParseVolume(s, "/work") }
	mount := func(s string) (Volume, error) { return ParseMount(s, "/work") }
	tests := []struct {
		parse func(string) (Volume, error)
		value string
		want  Volume
		err   string // a part of the error
	}{
		{parse: volume, value: "/srv:/data", want: Volume{Source: "/srv", Target: "/data"}},
		{parse: volume, value: "/srv/../srv/:/data//x/", want: Volume{Source: "/srv", Target: "/data/x"}},
		{parse: volume, value: ".:/data:ro", want: Volume{Source: "/work", Target: "/data", Options: []string{"ro"}}},
		{parse: volume, value: "sub/dir:/data", want: Volume{Source: "/work/sub/dir", Target: "/data"}},
		{parse: volume, value: "/srv:/data:rw,z,rslave,nosuid", want: Volume{Source: "/srv", Target: "/data", Options: []string{"rw", "rslave", "nosuid"}}},
		{parse: volume, value: "/srv:/data:bind", want: Volume{Source: "/srv", Target: "/data", NonRecursive: true}},
		{parse: volume, value: "cache:/var/cache", want: Volume{Kind: Named, Source: "cache", Target: "/var/cache"}},
		{parse: volume, value: "/var/cache", want: Volume{Kind: Named, Target: "/var/cache"}},
		{parse: volume, value: "/a/../../etc:/../../data", want: Volume{Source: "/etc", Target: "/data"}},
		{parse: volume, value: "", err: "target is empty"},
		{parse: volume, value: ":/data", err: "source before the colon is empty"},
		{parse: volume, value: "/srv:", err: "target is empty"},
		{parse: volume, value: "/srv:data", err: "not an absolute path"},
		{parse: volume, value: "/srv:/", err: "container's root"},
		{parse: volume, value: "/srv:/data/..", err: "container's root"},
		{parse: volume, value: "/srv:/data:", err: "options after the second colon are empty"},
		{parse: volume, value: "/srv:/data:ro,", err: "empty option"},
		{parse: volume, value: "/srv:/data:ro,rw", err: "options ro and rw"},
		{parse: volume, value: "/srv:/data:ro,ro", err: "options ro and ro"},
		{parse: volume, value: "/srv:/data:shared,rslave", err: "options shared and rslave"},
		{parse: volume, value: "/srv:/data:readonly", err: `unknown option "readonly"`},
		{parse: volume, value: "/srv:/data:size=1", err: `unknown option "size=1"`},
		{parse: volume, value: "/srv:/data:U,ro", want: Volume{Source: "/srv", Target: "/data", Options: []string{"U", "ro"}}},
		{parse: volume, value: "cache:/data:nocopy", want: Volume{Kind: Named, Source: "cache", Target: "/data", NoCopy: true}},
		{parse: mount, value: "type=image,source=alpine,target=/i", want: Volume{Kind: Image, Reference: "alpine", Target: "/i", Options: []string{"ro"}}},
		{parse: mount, value: `type=volume,source=v,target=/i,volume-nocopy,"volume-label=a=b,c"`, want: Volume{Kind: Named, Source: "v", Target: "/i", NoCopy: true, Labels: map[string]string{"a": "b,c"}}},
		{parse: mount, value: "type=volume,source=v,target=/i,volume-driver=nfs", err: "no volume driver"},
		{parse: volume, value: "/a:/b:/c:ro", err: "too many colons"},
		{parse: volume, value: "-x:/data", err: "neither a path"},
		{parse: volume, value: "a b:/data", err: "neither a path"},
		{parse: mount, value: "type=bind,source=/a:b,target=/c", want: Volume{Source: "/a:b", Target: "/c"}},
		{parse: mount, value: "type=bind,src=x,dst=/c,readonly,bind-propagation=rshared", want: Volume{Source: "/work/x", Target: "/c", Options: []string{"ro", "rshared"}}},
		{parse: mount, value: "source=cache,destination=/c,ro=false", want: Volume{Kind: Named, Source: "cache", Target: "/c"}},
		{parse: mount, value: "type=tmpfs,target=/c,tmpfs-size=64m,tmpfs-mode=1777", want: Volume{Kind: Tmpfs, Target: "/c", Options: []string{"size=64m", "mode=1777"}}},
		{parse: mount, value: "type=bind,source=/a", err: "target= is missing"},
		{parse: mount, value: "type=bind,target=/a", err: "source= is missing"},
		{parse: mount, value: "type=floppy,target=/a", err: `unknown type "floppy"`},
		{parse: mount, value: "type=tmpfs,source=/x,target=/a", err: "no source"},
		{parse: mount, value: "type=tmpfs,target=/a,colour=red", err: `unknown key "colour"`},
		{parse: mount, value: "source=/x,target=/a", err: "not a volume's name"},
		{parse: mount, value: "type=bind,source=/x,target=/a,ro=maybe", err: "neither true nor false"},
		{parse: ParseTmpfs, value: "/run", want: Volume{Kind: Tmpfs, Target: "/run"}},
		{parse: ParseTmpfs, value: "/run:size=1g,mode=755,noexec", want: Volume{Kind: Tmpfs, Target: "/run", Options: []string{"size=1g", "mode=755", "noexec"}}},
		{parse: ParseTmpfs, value: "/run:size=big", err: "not a number"},
		{parse: ParseTmpfs, value: "run", err: "not an absolute path"},
	}
	for _, test := range tests {
		got, err := test.parse(test.value)
		switch {
		case test.err == "" && err != nil:
			t.Errorf("%q: %v", test.value, err)
		case test.err != "" && (err == nil || !strings.Contains(err.Error(), test.err)):
			t.Errorf("%q: error %v, want one with %q", test.value, err, test.err)
		case err == nil && !reflect.DeepEqual(got, test.want):
			t.Errorf("%q: %+v, want %+v", test.value, got, test.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		"/srv:/data:ro", "name:/data", "/data", ".:/x:rslave,z", "type=bind,source=/a:b,target=/c,readonly",
		"type=tmpfs,target=/c,tmpfs-size=64m", "/run:size=1g,mode=755", "::::", "../..:/../..",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, value string) {
		parsers := []func(string) (Volume, error){
			func(s string) (Volume, error) { return ParseVolume(s, "/work") },
			func(s string) (Volume, error) { return ParseMount(s, "/work") },
			ParseTmpfs,
		}
		for _, parse := range parsers {
			v, err := parse(value)
			if err != nil {
				continue
			}
			if !path.IsAbs(v.Target) || path.Clean(v.Target) != v.Target || v.Target == "/" || strings.Contains(v.Target, "..") && strings.Contains(v.Target+"/", "/../") {
				t.Errorf("%q: target %q", value, v.Target)
			}
			switch v.Kind {
			case Bind:
				if !filepath.IsAbs(v.Source) || filepath.Clean(v.Source) != v.Source {
					t.Errorf("%q: source %q", value, v.Source)
				}
			case Named:
				if v.Source != "" && !validName(v.Source) {
					t.Errorf("%q: name %q", value, v.Source)
				}
			case Tmpfs, Image:
				if v.Source != "" {
					t.Errorf("%q: source %q of a tmpfs", value, v.Source)
				}
			}
			for _, option := range v.Options {
				if option == "" || strings.Contains(option, ",") {
					t.Errorf("%q: option %q", value, option)
				}
			}
		}
	})
}
