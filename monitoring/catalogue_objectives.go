package monitoring

// objectiveFamilies say whether the objectives are kept.
var objectiveFamilies = []Family{}
