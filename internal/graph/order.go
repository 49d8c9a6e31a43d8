package graph

import (
	"cmp"
	"fmt"
	"reflect"
)

// ordering returns a total order of K that does not depend on history or process: its own Compare(K) int, or else field
// by field. It panics for a type that has none; name is of the table that needs it.
func ordering[K comparable](name string) func(a, b K) int {
	typ := reflect.TypeFor[K]()
	if m, ok := typ.MethodByName("Compare"); ok {
		if compare, ok := m.Func.Interface().(func(a, b K) int); ok {
			return compare
		}
	}
	compare := comparer(typ)
	if compare == nil {
		panic(fmt.Sprintf("graph: table %q: keys of type %s have no order; give the type a method Compare(%s) int", name, typ, typ))
	}
	return func(a, b K) int { return compare(reflect.ValueOf(a), reflect.ValueOf(b)) }
}

// comparer returns an order of t, or nil if t has none.
func comparer(t reflect.Type) func(a, b reflect.Value) int {
	switch t.Kind() {
	case reflect.String:
		return func(a, b reflect.Value) int { return cmp.Compare(a.String(), b.String()) }
	case reflect.Bool:
		return func(a, b reflect.Value) int {
			if a.Bool() == b.Bool() {
				return 0
			}
			return map[bool]int{false: -1, true: 1}[a.Bool()]
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return func(a, b reflect.Value) int { return cmp.Compare(a.Int(), b.Int()) }
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return func(a, b reflect.Value) int { return cmp.Compare(a.Uint(), b.Uint()) }
	case reflect.Array:
		elem := comparer(t.Elem())
		if elem == nil {
			return nil
		}
		return func(a, b reflect.Value) int {
			for i := range t.Len() {
				if c := elem(a.Index(i), b.Index(i)); c != 0 {
					return c
				}
			}
			return 0
		}
	case reflect.Struct:
		fields := make([]func(a, b reflect.Value) int, t.NumField())
		for i := range fields {
			if fields[i] = comparer(t.Field(i).Type); fields[i] == nil {
				return nil
			}
		}
		return func(a, b reflect.Value) int {
			for i, compare := range fields {
				if c := compare(a.Field(i), b.Field(i)); c != 0 {
					return c
				}
			}
			return 0
		}
	}
	return nil
}
