package runner

import (
	"encoding/json"
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// TestLeanConfig: P2 is told all of a specification but what it has no use for.
func TestLeanConfig(t *testing.T) {
	var spec specs.Spec
	fill(reflect.ValueOf(&spec).Elem())
	cfg := initConfig{Spec: &spec, Rootfs: "/rootfs", User: "alice", AwaitFilter: true, Shared: []string{"/dev/shm"}}
	data, err := json.Marshal(cfg.lean())
	if err != nil {
		t.Fatal(err)
	}
	lean := emptyLean()
	if err := json.Unmarshal(data, lean); err != nil {
		t.Fatal(err)
	}
	want := spec
	linux := *spec.Linux
	want.Linux = &linux
	want.Hooks, want.Solaris, want.Windows, want.VM, want.ZOS, want.FreeBSD = nil, nil, nil, nil, nil, nil
	linux.Resources, linux.NetDevices, linux.Seccomp, linux.IntelRdt, linux.MemoryPolicy, linux.Personality = nil, nil, nil, nil, nil, nil
	got := lean.full()
	a, b := must1(json.Marshal(got.Spec)), must1(json.Marshal(&want))
	if string(a) != string(b) {
		t.Errorf("it is told\n%s\nof\n%s", a, b)
	}
	if got.Rootfs != cfg.Rootfs || got.User != cfg.User || !got.AwaitFilter || !reflect.DeepEqual(got.Shared, cfg.Shared) {
		t.Errorf("beside the specification, it is told %+v", got)
	}
}

// fill gives every field a value, and lists and maps one element.
func fill(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem())
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i))
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0))
	case reflect.Map:
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key)
		fill(value)
		v.Set(reflect.MakeMap(v.Type()))
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString("x")
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(1)
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(1)
	case reflect.Float32, reflect.Float64:
		v.SetFloat(1)
	}
}
