// Package archive writes files as tars, and puts tars into directories, for trees that belong to somebody who may be hostile
// and may be changing them: a container's root, a volume. Everything goes by descriptors below one directory. Nothing of the
// tree is ever executed, and no path is looked at twice as a string (CVE-2018-15664, CVE-2019-14271).
package archive
