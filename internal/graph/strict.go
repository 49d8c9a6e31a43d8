package graph

import (
	"fmt"
	"hash/maphash"
	"reflect"
	"time"
)

// deepHash hashes v and everything it points to, as far as a user of its type could change it.
func deepHash(seed maphash.Seed, v any) uint64 {
	h := hasher{on: map[visit]bool{}}
	h.SetSeed(seed)
	h.value(reflect.ValueOf(v))
	return h.Sum64()
}

type hasher struct {
	maphash.Hash
	on map[visit]bool // pointers being hashed, against cycles
}

type visit struct {
	p uintptr
	t reflect.Type
}

func (h *hasher) value(v reflect.Value) {
	switch v.Kind() {
	case reflect.Interface:
		h.value(v.Elem())
	case reflect.Pointer:
		h.pointer(v)
	case reflect.Array, reflect.Slice:
		h.list(v)
	case reflect.Map:
		h.mapping(v)
	case reflect.Struct:
		h.fields(v)
	default: // nothing below it; fmt reads unexported fields too
		fmt.Fprintf(h, "%q ", fmt.Sprint(v))
	}
}

func (h *hasher) pointer(v reflect.Value) {
	at := visit{v.Pointer(), v.Type()}
	if v.IsNil() || h.on[at] || v.Type() == reflect.TypeFor[*time.Location]() { // a location fills its cache when it is used
		fmt.Fprint(h, "nil ")
		return
	}
	h.on[at] = true
	h.value(v.Elem())
	delete(h.on, at)
}

func (h *hasher) list(v reflect.Value) {
	fmt.Fprint(h, v.Len(), " ")
	if v.Kind() == reflect.Slice && v.Type().Elem().Kind() == reflect.Uint8 {
		h.Write(v.Bytes())
		return
	}
	for i := range v.Len() {
		h.value(v.Index(i))
	}
}

// mapping adds the hashes of the entries up, as they come in any order.
func (h *hasher) mapping(v reflect.Value) {
	var sum uint64
	for it := v.MapRange(); it.Next(); {
		e := hasher{on: h.on}
		e.SetSeed(h.Seed())
		e.value(it.Key())
		e.value(it.Value())
		sum += e.Sum64()
	}
	fmt.Fprint(h, v.Len(), sum, " ")
}

// fields leaves out the unexported fields of protobuf messages, which reading such a message fills, and what is there to be
// changed by several goroutines.
func (h *hasher) fields(v reflect.Value) {
	if pkg := v.Type().PkgPath(); pkg == "sync" || pkg == "sync/atomic" {
		return
	}
	_, isProto := reflect.PointerTo(v.Type()).MethodByName("ProtoReflect")
	for i := range v.NumField() {
		if !isProto || v.Type().Field(i).IsExported() {
			h.value(v.Field(i))
		}
	}
}
